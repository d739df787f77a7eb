"""The top-k sample: which memory rows each anchor is paired with.

- by_label, by_relevance, by_neighbors: k is theirs: how many rows of which kind
- candidates: which rows may be a pick of which anchor, and the best of them
- mining: the space where hardness is measured; mining_keys stores its keys, sketch is a short code
- streamed: the k best of scores that are never held whole
- neighbor_table: what is found among rows that change no more, searched once
- random_rows: rows drawn by chance
"""
