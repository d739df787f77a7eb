"""How good embeddings are: retrieval, neighbours that are kept, exact search, and fewer bits."""
