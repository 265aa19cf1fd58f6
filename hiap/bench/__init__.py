"""Does the cut pay? ``python -m hiap.bench``: the clock and its modes (``run``), networks for it (``topologies``)."""
