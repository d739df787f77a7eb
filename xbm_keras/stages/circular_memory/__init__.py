"""The cross-batch memory: rows of features, the oldest of which are overwritten.

- ring: rows, the counter, and `enqueue`, which overwrites
- newest_of_id: which row of an id counts
- item_arrays: what is taken, and what is refused
- writes, replicas: how rows are written, also on several devices
"""
