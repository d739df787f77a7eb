"""YAML <-> checked values.

- schema, data_schema, head_schema, search_schema: every key, its default, and what it means
- sections: how a section is made of the constructor that it feeds
- yaml_files, override_text: from a file and `--set` to a `Config`
- retired: keys that configs had once
- reference: docs/config.md, made of the schema
"""
