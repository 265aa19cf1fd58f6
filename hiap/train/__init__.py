"""``python -m hiap.train key=value ...``: one run from its configuration to its record.

``config`` what a run is, ``start`` the network that it starts from, ``stages`` the phases of its method, ``run`` the
loop, ``reach`` the refusal of runs that cannot prune, ``evaluate`` its score, ``checkpoint`` and ``seeds`` what lets it
resume to the bit, ``distributed`` several processes, ``record`` what it leaves.
"""
