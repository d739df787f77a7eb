"""`xbm-keras duplicates`: items that are nearly the same, and labels that may be wrong, as a table and a page."""

import logging
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from xbm_keras.atomic_files import write_whole
from xbm_keras.cli import parsers, terminal
from xbm_keras.data.errors import UnreadableItem
from xbm_keras.data.labels import counted
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.data.pictures import decode_picture
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.label_noise import LabelNoise, find_label_noise
from xbm_keras.experiment import saved_run
from xbm_keras.index.opened_index import OpenedIndex
from xbm_keras.index.roots import named_folder, picture_of
from xbm_keras.report.duplicates import duplicates_page
from xbm_keras.report.page import Item, picture_uri, write_page
from xbm_keras.report.retrieval import preview_items

log = logging.getLogger("xbm_keras")
Show = Callable[[list[int]], Iterable[Item]]
Found = tuple[np.ndarray, np.ndarray, np.ndarray, Show]
"""Ids, labels, vectors and previews."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done."""
    options = parsers.duplicates().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        if options.index:
            ids, labels, vectors, show = _of_index(options.index, dict(map(named_folder, options.pictures)))
        else:
            ids, labels, vectors, show = _of_run(options.model, options.config, options.set)
        noise = find_label_noise(vectors, labels, options.min_score)
        table, page = (options.output.with_name(f"{options.output.name}.{end}") for end in ("csv", "html"))
        write_whole(table, _table(noise, ids, labels).to_csv(index=False))
        subtitle = (
            f"{counted(len(ids), 'item')} of {options.index or options.model}; nearly the same is a similarity of "
            f"{options.min_score:g} or more. {table.name} has all of it."
        )
        made = duplicates_page("Duplicates and doubtful labels", subtitle, noise, labels, show)
        write_page(page, made)
    log.info("%s %s and %s", made.verdict.text, table, page)
    return 0


def _of_index(
    folder: pathlib.Path, folders: dict[str, pathlib.Path]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Show]:
    """Ids, labels, vectors and previews of the items of an index."""
    gallery = OpenedIndex.newest(folder).gallery
    if not folders and "text" not in gallery.items.column_names:
        log.info("The page names the items; to see their pictures, say --pictures [ROOT=]FOLDER.")
    texts = gallery.items["text"].to_pylist() if "text" in gallery.items.column_names else [None] * len(gallery.items)

    def show(positions: list[int]) -> Iterable[Item]:
        for i in positions:
            path, picture = picture_of(gallery.ids[i], folders), None
            if path is not None:
                try:
                    picture = picture_uri(decode_picture(path.read_bytes()))
                except (OSError, UnreadableItem) as error:
                    log.warning("Not shown: %s: %s", path, error)
            text = None if texts[i] is None or picture else str(texts[i])
            yield Item(gallery.labels[i], gallery.ids[i], picture, text)

    return gallery.ids, gallery.labels, gallery.vectors, show


def _of_run(model: str, config: str | None, overrides: list[str]) -> Found:
    """Ids, labels, features and previews of the data of a run."""
    dataset = saved_run.load_data(model, config, overrides, all_test=True)
    if isinstance(dataset, PairDataset):
        ids = dataset.pairs.documents.ids
        vectors = np.asarray(UnitRows(dataset.documents))
        return ids, np.full(len(ids), "", object), vectors, lambda positions: [Item("", str(ids[i])) for i in positions]
    test = dataset.splits.test
    labels = dataset.names_of(test).astype(object)

    def show(positions: list[int]) -> Iterable[Item]:
        return preview_items(dataset, np.array(positions, int), labels[positions].tolist())

    return dataset.keys[test], labels, np.asarray(UnitRows(dataset.features, test)), show


def _table(noise: LabelNoise, ids: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """A row for each pair, and for each item out of place: with its nearest item, and the label of its neighbours."""
    parts = []
    for kind, pairs in (("other_label", noise.other_label), ("same_label", noise.same_label)):
        first, second = pairs.first, pairs.second
        parts.append(
            {
                "kind": np.full(len(first), kind), "id": ids[first], "label": labels[first], "other_id": ids[second],
                "other_label": labels[second], "similarity": pairs.score, "identical": noise.is_identical(pairs),
            }
        )  # fmt: skip
    out = noise.out_of_place
    best = (out.nearest[:, :1].ravel(), out.score[:, :1].ravel())
    parts.insert(
        1,
        {
            "kind": np.full(len(out.item), "out_of_place"), "id": ids[out.item], "label": labels[out.item],
            "other_id": ids[best[0]], "other_label": out.label, "similarity": best[1],
            "identical": np.zeros(len(out.item), bool),
        },
    )  # fmt: skip
    return pd.concat([pd.DataFrame(part) for part in parts])
