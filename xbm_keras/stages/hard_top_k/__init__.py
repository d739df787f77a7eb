"""The top-k sample: which memory rows each anchor is paired with."""
