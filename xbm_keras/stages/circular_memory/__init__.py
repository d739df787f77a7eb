"""The cross-batch memory: rows of features, the oldest of which are overwritten."""
