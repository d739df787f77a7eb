"""A run and its index: what its network and head make of items, and what a new head makes of those that are there."""

import functools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import cast

import numpy as np

from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import ConfigError, load_config
from xbm_keras.data.arrays import Vectors
from xbm_keras.data.labels import counted
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.pictures import DECODER
from xbm_keras.data.sources import Items, Source
from xbm_keras.data.texts import Texts, TextTable
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.data.views import changes_of, digest_of
from xbm_keras.experiment import saved_run
from xbm_keras.experiment.averaging import with_views
from xbm_keras.experiment.build import make_backbone
from xbm_keras.export.averaging import read_average
from xbm_keras.feature_cache.cache import compute_features, fingerprint
from xbm_keras.feature_cache.shards import ShardedRows, Shards, find_places
from xbm_keras.geometry import unit_rows
from xbm_keras.index.export_embedder import ExportEmbedder
from xbm_keras.index.exported_model import FEATURE_ROWS, ExportedModel, exported_by, fingerprint_of
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.incoming import Embedder, described, digests_of, items_of
from xbm_keras.index.opened_index import OpenedIndex
from xbm_keras.index.roots import place_of
from xbm_keras.stages.backbone.frozen import Backbone

log = logging.getLogger("xbm_keras")
DOCUMENTS = "serve_document_features"
NAME = 16  # signs of a network's fingerprint that are the name of its folder in the cache


def embedder_of(model: str, index: pathlib.Path, modality: str) -> Embedder:
    """A run where `--model` names one, whose features are cached; else the exported model that it names.

    Args:
        model: what `--model` names.
        index: the folder of the index.
        modality: of the items: "image", "text" or "vector".
    """
    if (pathlib.Path(model) / "config.yaml").is_file() and (pathlib.Path(model) / "model.keras").is_file():
        return RunEmbedder(model, modality)
    return ExportEmbedder(exported_by(model), index, modality)


class RunEmbedder:
    """An `Embedder` that is a finished run: the network sees each item once, ever, and a killed command goes on.

    Args:
        run: its workdir.
        modality: of the items; None where they are not new.

    Raises:
        ConfigError: where the run takes no such items.
    """

    def __init__(self, run: str, modality: str | None = None):
        self.run, self.version = run, exported_by(run)
        self.fingerprint = fingerprint_of(self.version)
        self.average = read_average(self.version)
        """Views of a picture that the exported model averages, which are cached as pictures are."""
        self.config: Config = load_config(str(saved_run.run_of(run) / "config.yaml"), is_finished=True)
        own = self.config.data.modality if self.config.backbone.kind != "none" else "vector"
        if modality not in (None, "vector", own):
            others = "" if own == "vector" else ", or vectors of its network"
            raise ConfigError(f"Received {modality}s for a run of {own}s; expected {own}s{others}. Give these.")
        self.cache_dir = pathlib.Path(os.path.expanduser(self.config.cache.dir))

    @functools.cached_property
    def exported(self) -> ExportedModel:
        """The model, which need not end in the head of the run: `compress` exports others."""
        return ExportedModel(self.version, "serve_features")

    @functools.cached_property
    def backbone(self) -> Backbone | None:
        """The frozen network."""
        return make_backbone(self.config)

    def network(self, source: Source | Vectors) -> str | None:
        """The name of its folder in the cache; None for vectors."""
        return None if isinstance(source, Vectors) else self.network_of(source.decoder)

    def network_of(self, decoder: str) -> str | None:
        """The same for items that this decoder made; None where the run is of vectors."""
        if self.backbone is None:
            return None
        return fingerprint(self.backbone, self.config.cache.dtype, decoder)[:NAME]

    def embed(self, source, positions):
        """Vectors, their positions, and why others have none."""
        if isinstance(source, Vectors):
            return self.embed_rows(source.features, positions), positions, {}
        if self.config.is_of_pairs and isinstance(source, TextTable):
            source = Texts(source.texts, source.items, self.config.data.document_prefix)
        if self.backbone is None:
            raise ValueError("Received items that are no vectors for a run of vectors; expected vectors. Give these.")
        cached = compute_features(source, self.backbone, self.config.cache.dir, **self.config.cache.arguments())
        places = np.searchsorted(cached.positions, positions)
        has_one = np.isin(positions, cached.positions)
        keys = source.items.keys
        reasons = {int(i): cached.skipped[str(keys[i])] for i in positions[~has_one]}
        plain = self.embed_rows(cached.rows, places[has_one])
        vectors, kept, others = self.with_views(plain, source, positions[has_one])
        return vectors, kept, reasons | others

    def with_views(
        self, plain: np.ndarray, source: Source, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Embeddings [n, E] of pictures, averaged over views where the model does so: see `averaging.with_views`."""
        if not self.average or self.backbone is None:
            return plain, positions, {}
        return with_views(plain, source, positions, self.average, self.config, self.backbone, self.embed_rows)

    def embed_rows(self, features, positions: np.ndarray) -> np.ndarray:
        """Vectors [n, E] of rows of features. Raises ValueError for features of another width."""
        signature = DOCUMENTS if self.config.is_of_pairs else "serve_features"
        if signature not in self.exported.loaded.signatures:  # of an earlier release, or of a head of queries alone
            head = saved_run.load_head(self.run)
            saved_run.check_width(head, features)
            return saved_run.embed_items(head, features, positions, of_rows=True)
        rows, starts = UnitRows(features, positions), range(0, max(1, len(positions)), FEATURE_ROWS)
        blocks = (rows[start : start + FEATURE_ROWS] for start in starts)
        return np.concatenate([self.exported.embed_features(block, signature) for block in blocks])


def reembedded(opened: OpenedIndex, run: str) -> tuple[Gallery, str]:
    """The items of an index as a new head over the same network embeds them, and the fingerprint of its model.

    Their features come from the cache; the network does not run.

    Args:
        opened: the index.
        run: a finished run.

    Raises:
        ValueError: where the network is another, or features are not in the cache.
    """
    embedder = RunEmbedder(run)
    network = opened.about.get("network")
    if network is None or all(network != embedder.network_of(decoder) for decoder in (DECODER, "")):
        which = "does not know its network" if network is None else "is of another network than this run"
        raise ValueError(
            f"Received an index that {which}; expected one of the run's frozen network, whose features are in the "
            "cache. Build it anew by the run; or map it, where some of its items are in an index of the run: "
            "xbm-keras index map."
        )
    folder = embedder.cache_dir / network
    places, items = find_places(folder), opened.kept_items
    digests = items["sha256"].to_pylist() if "sha256" in items.column_names else [None] * len(items)
    total = np.zeros((), np.float32)
    for view in (None, *changes_of(embedder.average)):
        found = [places.get(digest_of(str(digest), view) if view else str(digest)) for digest in digests]
        if missing := sum(not isinstance(place, tuple) for place in found):
            raise ValueError(
                f"Received an index, {counted(missing, 'item')} of which have no features in {folder}; expected those "
                f"of all {len(items)}{', and of their views' if view else ''}. Build it anew by the run, which "
                "computes what is missing."
            )
        shard_of, row_of = np.array(found, np.int64).reshape(-1, 2).T
        rows = ShardedRows(Shards(folder), shard_of, row_of)
        total = total + embedder.embed_rows(rows, np.arange(len(items)))
    return Gallery(unit_rows(total) if embedder.average else total, items), embedder.fingerprint


def of_run(run: str, config_path: str | None, overrides: Sequence[str], all_items: bool) -> tuple[Gallery, dict]:
    """The items of a run's data, or its documents, embedded by its head; and what to write of them: see `write_index`.

    Args:
        run: its workdir, export, or a version of it.
        config_path: of other data: see `load_data`.
        overrides: `section.key=value`.
        all_items: whether all of the items, or those that test.
    """
    embedder = RunEmbedder(run)
    dataset = saved_run.load_data(run, config_path, overrides, all_test=all_items)
    roots = {}
    if isinstance(dataset, PairDataset):
        side, features, chosen = dataset.pairs.documents, dataset.documents, np.arange(len(dataset.documents))
        is_text = side.features is None
        source: Source | Vectors = (
            side.source(embedder.config.data.document_prefix)
            if is_text
            else Vectors(cast(np.ndarray, features), Items(side.ids, None, {}))
        )
        positions = None
    else:
        source, features, chosen = dataset.source, dataset.features, dataset.splits.test
        positions = dataset.source_positions[chosen]
        folder = getattr(source, "root", None)
        roots = {"": place_of(folder)} if isinstance(folder, pathlib.Path) else {}
    vectors = embedder.embed_rows(features, chosen)
    if positions is not None and not isinstance(source, Vectors):
        vectors, positions, reasons = embedder.with_views(vectors, source, positions)
        for position, reason in reasons.items():
            log.warning("Left out %s: %s.", source.items.keys[position], reason)
    table = described(items_of(source, "", positions), "", digests_of(source, embedder.cache_dir, positions))
    about = {"model": embedder.fingerprint, "network": embedder.network(source), "roots": roots}
    return Gallery(vectors, table), about
