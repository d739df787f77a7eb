"""Sources of items, their splits, and the batches drawn from them."""
