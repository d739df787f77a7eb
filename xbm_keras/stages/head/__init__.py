"""The FC layer, the only trainable weights, and its closed-form starts.

- fc_layer: from features to embeddings, of nested widths
- neighbor_scatter, starts: PCA, whitening, discriminant analyses; pair_starts: the same for queries and
  documents, and regression
"""
