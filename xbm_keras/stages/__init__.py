"""The boxes of the picture, a folder each, and `cosine_scores`; alphabetical order is data-flow order."""
