"""Ours, not the paper's: a network of a given size, in MACs, parameters or predicted time.

The paper's rule leaves what its two strengths leave. Here a policy takes the three decisions that ``hiap.pruner`` hands
out: it scales the penalty, is told each step, and chooses the masks.

    options     the paper's options, and what is ours among them
    sizes       what a target means; sizes of known networks; without torch
    latency     measured time as prices of units; without torch
    prices      parameters and time as prices of units; what masks leave, at any prices
    selection   which units stay: landing on a target, in multiples, with protected units
    controller  the strength of the penalty, found while training
    summary     what the masks would leave, block by block
    watch       whether a loop prunes at all
    policy      these decisions as a policy
    pruner      ``hiap.Pruner`` and ``hiap.extract``: the paper's, with targets
"""
