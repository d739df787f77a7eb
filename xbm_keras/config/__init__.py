"""YAML <-> checked values."""
