"""What an index is asked for: pictures, texts or features, through the model that embedded it."""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np

from xbm_keras.data.arrays import Features
from xbm_keras.index.exported_model import ExportedModel, exported_by, read_bytes, why_invalid
from xbm_keras.index.exported_texts import ExportedTexts
from xbm_keras.index.opened_index import OpenedIndex


class Queries(NamedTuple):
    """Q queries."""

    names: list[str]
    vectors: np.ndarray
    """[Q, E]."""
    errors: list[str | None]
    """Why one has no vector; None where it has one."""


def are_given(options: argparse.Namespace) -> bool:
    """Whether anything is asked for."""
    return bool(options.picture or options.text or options.features)


def read_queries(options: argparse.Namespace, opened: OpenedIndex) -> Queries:
    """What is asked for, embedded.

    Raises:
        ValueError: for none or two kinds of it, what the model does not take, or a model that did not embed the index.
    """
    given = [name for name in ("picture", "text", "features") if getattr(options, name)]
    if len(given) != 1:
        raise ValueError(
            f"Received {' and '.join(given) or 'nothing'} to search for; expected pictures, --text or --features. Give "
            "one of them."
        )
    if not options.model:
        raise ValueError(
            "Received something to search for without --model; expected the model that embedded the index."
        )
    version = exported_by(options.model)
    kind = "serve_features" if options.features else "serving_default" if options.text else "serve_bytes"
    model = ExportedModel(version, kind)
    if model.fingerprint != opened.model:
        raise ValueError(
            f"Received the model {model.fingerprint} for an index of the model {opened.model}; expected one model, "
            "since vectors of two do not compare. Give the model that the index was built with."
        )
    if options.features:
        vectors = model.embed_features(np.asarray(Features(options.features, labels=None).features))
        return Queries([f"row {i}" for i in range(len(vectors))], vectors, [None] * len(vectors))
    if options.text:
        return Queries(options.text, ExportedTexts(model, version).embed(options.text), [None] * len(options.text))
    paths = [pathlib.Path(path) for path in options.picture]
    if not any(path.exists() and not path.is_dir() for path in paths):  # a pipe will do
        raise ValueError(f"Received {options.picture[0]!r}, which is no file; expected a picture. Mend the path.")
    vectors, valid = model.embed([read_bytes(path) for path in paths])
    errors = [None if is_valid else why_invalid(path) for path, is_valid in zip(paths, valid, strict=True)]
    return Queries(options.picture, vectors, errors)
