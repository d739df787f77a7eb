"""Galleries to search."""
