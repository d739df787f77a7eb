"""A version of an index, opened: what it holds, and what is found in it.

Letters: Q queries, N items, E embedding width, k answers.
"""

import functools
import json
import pathlib
from typing import Any

import numpy as np
import pyarrow
import tensorflow as tf

from xbm_keras.atomic_files import latest_version, versions
from xbm_keras.data.labels import counted, printable
from xbm_keras.evaluation.thresholds import MatchThresholds, read_thresholds, require_thresholds
from xbm_keras.index.approximate import ApproximateSearch, Engine, load_engine
from xbm_keras.index.coded_search import SearchForm, read_search_form
from xbm_keras.index.gallery import Gallery, Strings, is_in, joined, strings
from xbm_keras.index.saved_search import ExactSearch, mixed
from xbm_keras.index.segments import gallery_of, read_former, read_segments
from xbm_keras.index.where import meets

UNTOLD = ("root", "sha256")  # columns that are for the index alone
DAMAGES = (OSError, ValueError, LookupError, TypeError, RecursionError, pyarrow.ArrowException, tf.errors.OpError)


class OpenedIndex:
    """A version of an index. Vectors are read when they are first needed.

    Args:
        version: its folder.

    Raises:
        ValueError: where its files are damaged.
    """

    def __init__(self, version: pathlib.Path):
        self.version = version
        try:
            self.about = json.loads((self.version / "index.json").read_text("utf-8"))
            self.model: str = self.about["model"]
            """Fingerprint of the exported model that embedded the items."""
            form, names = read_search_form(self.version), self.about.get("segments")
            self.form: SearchForm = form or SearchForm(self.about["width"], "float32")
            """How the items are held and searched."""
            if form is None:
                self.segments = read_former(self.version, names, self.form)
            else:
                self.segments = read_segments(self.version, names, form, bool(self.num_mixed))
            self.items: pyarrow.Table = joined([segment.items for segment in self.segments])
            """Rows of all segments, those that are gone included."""
            self.kept = np.concatenate([segment.kept for segment in self.segments])
            """[rows] bool: which are not gone."""
            if len(self.kept) != len(self.items):
                raise ValueError(f"{len(self.kept)} marks of {len(self.items)} rows")
        except DAMAGES as error:
            raise self._damaged(error) from error

    @staticmethod
    def newest(folder: pathlib.Path) -> "OpenedIndex":
        """The newest version in a folder of them. Raises ValueError where there is none, or its files are damaged."""
        if not versions(folder):
            if versions(folder / "index"):
                raise ValueError(
                    f"Received --index {folder}, which holds no version of an index; expected one. Say --index "
                    f"{folder}/index, which does."
                )
            raise ValueError(
                f"Received --index {folder}, which holds no version of an index; expected one, such as {folder}/1. "
                f"Build it: xbm-keras index build --model RUN --index {folder}"
            )
        return OpenedIndex(latest_version(folder))

    def _damaged(self, error: Exception) -> ValueError:
        reason = f"{type(error).__name__}: {error}"
        return ValueError(
            f"Received {self.version}, a version of an index whose files are damaged ({reason}); expected them as they "
            "were written. Build the index anew, or delete this folder, and the version before it is the newest again."
        )

    def __len__(self) -> int:
        return int(self.kept.sum())

    @property
    def num_mixed(self) -> int:
        """Nearest items that are mixed into each item, and into each query before it is answered."""
        return self.about.get("mixed", 0)

    @functools.cached_property
    def kept_items(self) -> pyarrow.Table:
        """The items that are not gone."""
        return self.items.filter(pyarrow.array(self.kept))

    @functools.cached_property
    def gallery(self) -> Gallery:
        """The items that are not gone, with what their codes stand for, float32, of their plain vectors."""
        try:
            return gallery_of(self.segments)
        except DAMAGES as error:
            raise self._damaged(error) from error

    @functools.cached_property
    def approximate(self) -> Engine | None:
        """The approximate search; None where there is none. Raises ValueError where its library is missing."""
        try:
            return load_engine(self.version)
        except (OSError, RuntimeError, ValueError) as error:  # what libraries raise for files that are none of theirs
            if isinstance(error.__cause__, ImportError):
                raise
            raise self._damaged(error) from error

    @functools.cached_property
    def _approximate_search(self) -> ApproximateSearch:
        if self.approximate is None:
            raise ValueError("Received --approximate with an index that has no such part; build it with --approximate.")
        return ApproximateSearch(self.kept_items, self.approximate)

    @functools.cached_property
    def _exact(self) -> ExactSearch:
        try:
            segments = self.segments
            if self.num_mixed and "plain" not in segments[0].names:  # as earlier releases wrote them
                segments = [mixed(segments, self.num_mixed)]
            return ExactSearch(segments, self.about["width"], self.num_mixed)
        except DAMAGES as error:
            raise self._damaged(error) from error

    @functools.cached_property
    def thresholds(self) -> MatchThresholds | None:
        """Of the similarities that its search gives; None where it holds none."""
        return read_thresholds(self.version)

    def is_measured_by(self, model: pathlib.Path) -> bool:
        """Whether the thresholds of an exported model are of similarities such as its search gives."""
        return are_comparable(model, self.form, self.about["width"], self.num_mixed)

    def require_thresholds(self, model: pathlib.Path) -> MatchThresholds:
        """Its thresholds; where it holds none, those of the model, if they are of similarities as its search gives.

        Args:
            model: the folder of the exported model that embedded it.

        Raises:
            ValueError: where there are none, or those of the model hold for another search.
        """
        if self.thresholds is not None:
            return self.thresholds
        if not self.is_measured_by(model):
            how = f"{self.form}{f', {self.num_mixed} neighbours mixed in' if self.num_mixed else ''}"
            raise ValueError(
                f"Received a precision with an index that is held as {how}, while the thresholds of {model} are of "
                f"similarities in {form_of(model, self.about['width'])}; expected the same. Build the index without "
                "--form and --mix, or leave the precision out."
            )
        return require_thresholds(model)

    def holds(self, ids: Strings) -> np.ndarray:
        """[n] bool: which of these ids are of its items."""
        return is_in(strings(ids), self.kept_items["id"])

    def require(self, ids: Strings) -> None:
        """Raises ValueError for an id that it does not hold."""
        unknown = [str(each) for each, is_here in zip(ids, self.holds(ids), strict=True) if not is_here]
        if unknown:
            some = ", ".join(map(repr, self.kept_items["id"][:3].to_pylist()))
            raise ValueError(
                f"Received {counted(len(unknown), 'id')}, such as {unknown[0]!r}, which the gallery does not hold"
                f"; expected ids of its {len(self)} items, such as {some}. Nothing was removed."
            )

    def find(
        self, queries: np.ndarray, k: int, *, approximate: bool = False, where: str | None = None
    ) -> list[list[dict]]:
        """The items nearest to each query, best first.

        Args:
            queries: [Q, E], of the model that embedded the items.
            k: at most so many each.
            approximate: whether the approximate search is asked, which finds most of them.
            where: a condition that the items are to meet: see `meets`.

        Returns:
            For each query its hits: `id`, `label`, `similarity` (cosine) and `metadata`, plain values that JSON has.

        Raises:
            ValueError: for queries of another width, without an approximate search, for a condition that cannot be
                read, or one for an approximate search that has no filter.
        """
        if queries.ndim != 2 or queries.shape[1] != self.about["width"]:
            raise ValueError(
                f"Received queries of shape {queries.shape} for an index of width {self.about['width']}; expected "
                f"[Q, {self.about['width']}]. Embed them with the model of the index."
            )
        if approximate:
            items, (rows, similarities) = (
                self.kept_items,
                self._approximate_search.find(self.form.cut(queries), k, where),
            )
        else:
            items, among = self.items, self.kept & meets(self.items, where) if where else None
            rows, similarities = self._exact.find(queries, k, among)
        is_found = rows >= 0  # approximate search may find too few
        described = described_items(items.take(rows[is_found]))
        hits = [
            {**each, "similarity": score}
            for each, score in zip(described, similarities[is_found].tolist(), strict=True)
        ]
        ends = is_found.sum(axis=1).cumsum().tolist()
        return [hits[start:end] for start, end in zip([0, *ends][:-1], ends, strict=True)]


def form_of(model: pathlib.Path, width: int) -> SearchForm:
    """How an exported model is to be searched: as its `search.json` says, else in float32 at the width."""
    return read_search_form(model) or SearchForm(width, "float32")


def are_comparable(model: pathlib.Path, form: SearchForm, width: int, num_mixed: int) -> bool:
    """Whether the thresholds of an exported model hold for a search of this form, with so many neighbours mixed in."""
    return form == form_of(model, width) and not num_mixed


def described_items(items: pyarrow.Table) -> list[dict]:
    """Of each item `id`, `label` and `metadata`, plain values that JSON has."""
    rows = items.drop_columns([name for name in UNTOLD if name in items.column_names]).to_pylist()
    plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
    return [{"id": row.pop("id"), "label": row.pop("label"), "metadata": row} for row in plain]


def _plain(value: Any) -> Any:
    """A value of an Arrow table as JSON has it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return printable(str(value))
