"""The one pass through the backbone: each item once, ever.

- cache: the features of a source, and the key that they are kept under
- digests: which item is which, by its content
- extraction, ray_extraction: the pass, here or on a Ray cluster
- shards: the files
- kept_blocks: what else takes long and is computed once, such as neighbours
"""
