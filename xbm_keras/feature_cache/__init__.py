"""The one pass through the backbone: each item once, ever."""
