"""``python -m hiap.train key=value ...``: one run from its configuration to its record.

config, methods, arguments         what a run is, which methods there are, the command line
start, teachers, probe             the network that it starts from, and what it learns from
iterative                          a start that was pruned before
reach                              the refusal of runs whose gates cannot close
run, stages, loop, phase, step     the run, its method's stages, the one training loop
evaluate, measure                  accuracy
checkpoint, stopping, average      what lets it resume to the bit, how it stops, EMA of the weights
distributed, rendezvous, device    several processes, and where they run
record, identity, journal, card    what it leaves, what it was made of, what it tells, the model card
progress, curves                   what can be watched
warm, everything, compilation      fast starts and ``torch.compile``
plain_yaml                         YAML as people mean it
"""
