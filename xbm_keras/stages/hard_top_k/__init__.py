"""The top-k sample: which memory rows each anchor is paired with.

- by_label, by_neighbors: k is theirs: how many rows of which kind
- streamed: the k best of scores that are never held whole
- random_rows: rows drawn by chance
- mining_keys, sketch: other spaces than that of the features to seek in
"""
