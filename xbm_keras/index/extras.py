"""Libraries that an extra brings."""

import importlib


def import_library(module: str, extra: str):
    """A library. Raises ValueError where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"Received what needs {module.split('.')[0]}, which cannot be imported ({error}); expected the extra "
            f'[{extra}]. Install it with: pip install ".[{extra}]"'
        ) from error
