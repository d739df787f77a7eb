"""Sources of items, their splits, and the batches drawn from them.

- dataset: features of all items, and who of them does what
- sources, arrays, texts, tfds, glyphs: where items come from; tables, listing: how they are found
- pairs, pair_dataset: queries, documents, and which answers which; components: queries that share documents
- pictures: decoding, as all of the package does it; decoding, containers: the part that runs inside a graph
- labels, splits, duplicates: which class an item is in, and on which side of the test
- views: augmented and turned pictures
- unit_rows: features of unit length, read when they are indexed
- batches, generators: which items a step sees
- errors: what is said of data that cannot be used
"""
