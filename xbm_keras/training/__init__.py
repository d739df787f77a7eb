"""What happens between steps and between epochs.

- callbacks: the choice of the epoch, and its history
- checkpoints: a run that is killed goes on
- memory_batches: training from the rows of a prefilled memory
- known_neighbors: what its steps would search, searched before the first one
"""
