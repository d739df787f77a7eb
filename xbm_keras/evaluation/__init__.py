"""How good embeddings are: retrieval, neighbours that are kept, exact search, and fewer bits.

- metrics: of ranked lists, one value per query
- retrieval: over a whole set, and after each epoch
- exact_search: the nearest items
- pairs, graded_metrics, pair_scores: documents that answer queries, over a whole corpus; intervals: how sure a mean is
- neighbors: what needs no labels; near_duplicates, label_noise: which labels may be wrong
- neighbor_labels: labels that the nearest items suggest
- thresholds: whether a match is good enough
- packed_bits, trellis, layered_codes, quantization: codes of fewer bits; promises: what a search is to keep
- side_by_side: frozen features, closed form and trained head, as metrics.json has them
- wording: what these are called in tables and sentences
"""
