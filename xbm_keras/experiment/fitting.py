"""What `train.py` does as one call, of data that are at hand: no config file, no folder of a run."""

import hashlib
import itertools
import logging
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import ConfigError, check_config, put
from xbm_keras.data.arrays import Vectors
from xbm_keras.data.errors import DataError, UnreadableItem
from xbm_keras.data.labels import encode
from xbm_keras.data.pairs import Side, pairs_of_positions
from xbm_keras.data.sources import Items, RandomAccess
from xbm_keras.data.texts import Texts
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation import wording
from xbm_keras.evaluation.pair_scores import compare_pairs
from xbm_keras.evaluation.retrieval import embed, evaluate_retrieval
from xbm_keras.experiment import pair_phases, phases
from xbm_keras.experiment.build import sized_for
from xbm_keras.experiment.chosen_parts import choose_parts
from xbm_keras.experiment.loading import dataset_of, with_training_views
from xbm_keras.experiment.pair_loading import folds_of
from xbm_keras.experiment.run_folder import write_keras_file
from xbm_keras.experiment.saved_run import check_width
from xbm_keras.export.saved_model import export_encoder
from xbm_keras.feature_cache.extraction import compute_batches, default_batch_size
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.report.stage_costs import Costs
from xbm_keras.stages.backbone.frozen import Backbone, load_keras_file

log = logging.getLogger("xbm_keras")
SETTINGS = ("head", "memory", "top_k", "loss", "training", "cache", "views")  # sections that a call may set
NAMED = {
    "vector": {"data": {"source": "features", "path": "-"}, "backbone": {"kind": "none"}},
    "image": {"data": {"source": "image_array", "path": "-"}, "backbone": {"kind": "file", "path": "-"}},
    "text": {"data": {"source": "text", "path": "-"}, "backbone": {"kind": "keras_hub", "preset": "-"}},
    "pairs": {"data": {"source": "pairs", "path": "-"}, "backbone": {"kind": "none"}},
}
"""What a config says of data and network, by what an item is; both are given as objects."""


class GivenPictures(RandomAccess):
    """Pictures that are in memory.

    Args:
        pictures: uint8 [H, W, 3] each.
        items: their ids and labels.
    """

    def __init__(self, pictures: Sequence, items: Items):
        self.pictures, self.items = pictures, items

    def stamp(self, position: int) -> None:
        """None: the picture is at hand, hashing is cheap."""

    def digest(self, position: int) -> str:
        """Hash of shape and bytes."""
        picture = self.load(position)
        return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()

    def load(self, position: int) -> np.ndarray:
        """One picture. Raises UnreadableItem."""
        picture = np.asarray(self.pictures[position])
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UnreadableItem(f"an array of shape {picture.shape} and dtype {picture.dtype}, not uint8 [H, W, 3]")
        return picture


class FittedHead:
    """A trained head, with the network before it where there is one; made by `fit_head`, or `load`.

    Args:
        model: the trained model.
        scores: of the held-out items by which start and epoch were chosen: frozen features, closed form, trained; and
            what was chosen, as under `validation` in `metrics.json`. None where the model was loaded.

    Example:
        >>> model = XBMModel(None, Head(8), CircularMemory(64), HardTopK(4, 2), SupConLoss())
        >>> model.build({"features": (None, 32)})
        >>> FittedHead(model).transform(np.ones([3, 32])).shape
        (3, 8)
    """

    def __init__(self, model: XBMModel, scores: dict[str, Any] | None = None):
        self.model = model
        self.scores = scores

    def transform(self, items: Sequence) -> np.ndarray:
        """Embeddings [n, E], float32 of unit length, of what was fitted: vectors [n, D], pictures or texts.

        Raises ValueError for vectors of another width, and DataError for an item that cannot be read.
        """
        return embed(self.model.head, self.features(items))

    def features(self, items: Sequence) -> np.ndarray:
        """Frozen features [n, D] of such items. Raises as `transform` does."""
        features = _features(self.model.backbone, items)
        check_width(self.model.head, features)
        return features

    def evaluate(
        self, queries: Sequence, query_labels: Sequence, gallery: Sequence | None = None, gallery_labels=None
    ) -> dict[str, dict[str, float]]:
        """Metrics of `evaluate_retrieval` of the frozen features and of the trained head, by name.

        Args:
            queries: items as for `transform`.
            query_labels: [Q].
            gallery: items; None is leave-one-out.
            gallery_labels: [N].
        """
        q, g = self.features(queries), None if gallery is None else self.features(gallery)
        head, labels = self.model.head, np.asarray(query_labels)
        trained = embed(head, q), None if g is None else embed(head, g)
        return {
            "frozen": evaluate_retrieval(q, labels, g, gallery_labels),
            "trained": evaluate_retrieval(trained[0], labels, trained[1], gallery_labels),
        }

    def save(self, path: str | pathlib.Path) -> None:
        """Write the model as a `.keras` file; a network that such a file cannot hold is left out, see `load`."""
        write_keras_file(self.model, path)

    @classmethod
    def load(cls, path: str | pathlib.Path, backbone: Backbone | None = None) -> "FittedHead":
        """What `save` wrote; with the network, where that is a SavedModel or of keras_hub.

        Where the head was fitted on some parts of it, the network is the one that gives these alone, such as
        `HubBackbone.from_preset(..., parts=fitted.scores["parts"])`.
        """
        model = load_keras_file(path)
        return cls(model if backbone is None else model.with_backbone(backbone))

    def export(self, folder: str | pathlib.Path, **options: Any) -> pathlib.Path:
        """Write a SavedModel as the next version in a folder; options are those of `export_encoder`."""
        return export_encoder(self.model, pathlib.Path(folder), **options)


class FittedPairs(FittedHead):
    """A head for queries and documents, made by `fit_pairs`; `transform` is of queries.

    Example:
        >>> model = XBMModel(None, Head(8, sides="two"), CircularMemory(64), RelevantTopK(4, 2), SupConLoss())
        >>> model.build({"features": (None, 32)})
        >>> FittedPairs(model).transform_documents(np.ones([3, 32])).shape
        (3, 8)
    """

    def transform_documents(self, documents: Sequence) -> np.ndarray:
        """Embeddings [n, E] of documents, float32 of unit length. Raises as `transform` does."""
        return embed(self.model.head, self.features(documents), of_rows=True)

    def evaluate(  # type: ignore[override]
        self, queries: Sequence, documents: Sequence, pairs: np.ndarray
    ) -> dict[str, dict[str, float | list[float]]]:
        """Metrics of queries over all documents, of the frozen features and of the trained head, with intervals.

        Args:
            queries: items as for `transform`.
            documents: the corpus.
            pairs: [J, 2], or [J, 3] with grades, as for `fit_pairs`.
        """
        q, d = self.features(queries), self.features(documents)
        judged = _pairs(Side(_names(len(q)), features=q), Side(_names(len(d)), features=d), pairs)
        asked = np.unique(judged.query)
        relevant, grades = judged.relevant(asked)
        rows = UnitRows(q, asked), UnitRows(d)
        return compare_pairs(*rows, relevant, grades, {"frozen": None, "trained": self.model.head})["pairs"]


def fit_head(
    items: Sequence,
    labels: Sequence | None = None,
    *,
    backbone: Backbone | None = None,
    settings: Mapping[str, Any] | None = None,
) -> FittedHead:
    """Train a head on frozen features, by the whole recipe: start and epoch chosen on held-out classes, then a refit.

    All items train in the end; keep some classes to `evaluate` on. The network sees each item once, ever.

    Args:
        items: vectors [N, D]; or with a `backbone` pictures, uint8 [H, W, 3] each, or texts.
        labels: [N] numbers or strings; None, NaN and -1 say that an item has none, and it is left out. Without labels
            the head keeps each item's neighbours while the vectors shrink.
        backbone: the frozen network; None where the items are vectors. Of one that gives parts to choose from the head
            is fitted on those that held-out classes choose, `scores["parts"]`.
        settings: keys of a config and their values, such as `{"head.embedding_dim": 64, "training.epochs": 5}`: those
            of head, memory, top_k, loss, training, cache and views, as docs/config.md lists them.

    Raises:
        ConfigError: for settings that cannot be used.
        DataError: for items or labels that cannot be used.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat(["cat", "cow", "dog", "emu", "fox", "gnu", "hen", "pig"], 16)
        >>> vectors = rng.normal(size=(8, 32)).repeat(16, axis=0) + rng.normal(size=(128, 32))
        >>> fitted = fit_head(vectors, labels, settings={"head.embedding_dim": 8, "training.epochs": 1})
        >>> fitted.transform(vectors).shape
        (128, 8)
    """
    modality = "vector" if backbone is None else getattr(backbone, "modality", "image")
    config = _config(modality, settings, **({} if labels is not None else {"name": "similarity_alignment"}))
    about = _items(len(items), labels)
    source = Vectors(_floats(items), about) if backbone is None else _source(modality, items, about)
    config = sized_for(config, source, backbone)  # or an error, before a feature is computed
    dataset = with_training_views(config, dataset_of(source, config, backbone), backbone)
    config, dataset, backbone = choose_parts(config, dataset, backbone)
    with tempfile.TemporaryDirectory() as folder:
        model, metrics = phases.run(config, dataset, backbone, pathlib.Path(folder), Costs())
    return FittedHead(model, _judged(metrics["validation"]))


def fit_pairs(
    queries: Sequence,
    documents: Sequence,
    pairs: np.ndarray,
    *,
    backbone: Backbone | None = None,
    settings: Mapping[str, Any] | None = None,
) -> FittedPairs:
    """The same for queries and the documents that answer them; held out are queries with all their documents.

    Args:
        queries: vectors [Q, D]; or texts, with a `backbone`.
        documents: the whole corpus, [N, D] or texts.
        pairs: [J, 2] integers, positions of a query and of a document that answers it; or [J, 3] with grades.
        backbone: the frozen network of texts; None where vectors are given.
        settings: as for `fit_head`; `head.sides` says which side passes the head.

    Raises:
        ConfigError: for settings that cannot be used.
        DataError: for vectors, texts or pairs that cannot be used.

    Example:
        >>> documents = np.random.default_rng(0).normal(size=(60, 32))
        >>> queries = documents + np.random.default_rng(1).normal(size=(60, 32))
        >>> pairs = np.stack([np.arange(60), np.arange(60)], axis=1)
        >>> fitted = fit_pairs(queries, documents, pairs, settings={"head.embedding_dim": 8, "training.epochs": 1})
        >>> fitted.transform(queries[:2]).shape, fitted.transform_documents(documents).shape
        ((2, 8), (60, 8))
    """
    config = _config("pairs", settings)
    judged = _pairs(_side(queries, backbone), _side(documents, backbone), pairs)
    config = sized_for(config, judged, backbone)
    folds = folds_of(judged, config, backbone)
    with tempfile.TemporaryDirectory() as folder:
        model, metrics = pair_phases.run(config, folds, backbone, pathlib.Path(folder), Costs())
    return FittedPairs(model, _judged(metrics["validation"]))


def _config(modality: str, settings: Mapping[str, Any] | None, **loss: str) -> Config:
    """The recipe, with these settings, where nothing is kept to test."""
    values: dict[str, Any] = {**NAMED[modality], **({"loss": loss} if loss else {})}
    for key, value in (settings or {}).items():
        if key.split(".")[0] not in SETTINGS:
            raise ConfigError(
                f"Received the setting {key!r}; expected keys of {', '.join(SETTINGS)}, such as head.embedding_dim. "
                "Data and network are arguments."
            )
        put(values, key.split("."), value)
    config = check_config(values, "settings")
    split = config.data.split.model_copy(update={"test": None})
    return config.model_copy(update={"data": config.data.model_copy(update={"split": split})})


def _source(modality: str, items: Sequence, about: Items) -> Texts | GivenPictures:
    return Texts(items, about) if modality == "text" else GivenPictures(items, about)


def _names(count: int) -> np.ndarray:
    return np.arange(count).astype(str)


def _items(count: int, labels: Sequence | None) -> Items:
    """Items numbered by position. Raises DataError for labels that are not one for each."""
    found = None if labels is None else encode(labels, "labels that", none=-1)
    if found is not None and len(found) != count:
        raise DataError(
            f"Received {len(found)} labels for {count} items; expected one for each. Give lists of one length."
        )
    return Items(_names(count), found, {})


def _floats(vectors: Sequence) -> np.ndarray:
    """An array of floats, as it is where it is one."""
    found = np.asarray(vectors)
    return found.astype(np.float32) if found.dtype.kind in "iub" else found


def _judged(scores: dict[str, Any]) -> dict[str, Any]:
    """The same, with a warning where held-out items are served worse than by the features."""
    tone, said = wording.verdict(scores)
    if tone == "bad":
        log.warning("By items held out: %s With more dimensions, or more classes, it may be better.", said)
    return scores


def _side(given: Sequence, backbone: Backbone | None) -> Side:
    """Vectors, or texts where there is a network of them."""
    if backbone is None:
        return Side(_names(len(given)), features=_floats(given))
    return Side(_names(len(given)), [text or None for text in given])


def _pairs(queries: Side, documents: Side, pairs: np.ndarray):
    return pairs_of_positions(queries, documents, np.asarray(pairs), "pairs")


def _features(backbone: Backbone | None, items: Sequence) -> np.ndarray:
    """[n, D], of vectors as they are. Raises DataError for an item that the network has no features for."""
    if backbone is None:
        return _floats(items)
    source = _source(getattr(backbone, "modality", "image"), items, _items(len(items), None))
    batch_size = default_batch_size(bool(tf.config.list_physical_devices("GPU")))
    batches = compute_batches(source, backbone.as_function(), backbone.prepare, [range(len(items))], batch_size)
    rows: list[np.ndarray] = []
    for row in itertools.chain.from_iterable(batches):
        if isinstance(row, UnreadableItem):
            raise DataError(f"Received item {len(rows)}, which cannot be used: {row}. Mend it, or leave it out.")
        rows.append(row)
    return np.stack(rows)
