"""Multi-stage pruning baselines on the interface of ``hiap.train.stages``: one small file each, ``stages(config)``.

They share HiAP's data, training loop, extractor, MAC counter and record; their training cost is counted in full.
"""
