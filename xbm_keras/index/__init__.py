"""Galleries to search.

- gallery: vectors, and the table of their items
- galleries: versions of an index: write, add, remove, search
- usearch_graph: approximate search
- exported_model: pictures through an exported model; roots: what their ids are
"""
