"""The recipe: from a config to stages, from stages to results, and what a run leaves behind."""
