"""Galleries to search.

- gallery: vectors, and the table of their items
- galleries: versions of an index: write one, add, remove; opened_index: what is found in one
- segments: what a version is made of; saved_search: exact search as a SavedModel
- coded_search: search in few bits
- approximate: search that finds most; usearch_graph, faiss_lists, lance_table: by which library; extras: their import
- where: conditions on the items
- stores: galleries as files of other stores; mapping: vectors of one model in the space of another
- incoming: what is to enter; roots: the folders that items are of
- exported_model, exported_texts: pictures and texts through an exported model; export_embedder: items of any kind
"""
