"""The fewest bytes that keep a promise: widths, codes and rescoring of a run's embedding, tried on held-out items.

Letters: N items, Q queries, D feature width, E embedding width, w width of a cut.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from xbm_keras import progress
from xbm_keras.atomic_files import write_whole
from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.exact_search import without_own
from xbm_keras.evaluation.promises import PromisedItems
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.evaluation.thresholds import FILE as THRESHOLDS
from xbm_keras.evaluation.thresholds import measure_thresholds
from xbm_keras.experiment.held_out import MAX_SCORED_ITEMS, some_classes
from xbm_keras.experiment.phases import HELD_OUT_HEAD, copy_head
from xbm_keras.experiment.run_folder import export_model
from xbm_keras.geometry import unit_rows
from xbm_keras.index.coded_search import CodedSearch, SearchForm
from xbm_keras.model.xbm_model import STAGES, XBMModel
from xbm_keras.stages.head.fc_layer import Head

log = logging.getLogger("xbm_keras")
SHARES = (
    1 / 16,
    1 / 8,
    1 / 4,
    3 / 8,
    1 / 2,
    5 / 8,
    3 / 4,
    1,
)  # of the full width, that are tried where none are nested
FORMS = (
    ("float32", ()),
    ("float16", ()),
    ("int8", ()),
    ("int4", ("int8",)),
    ("binary", ("int8", "int4")),
)
"""Codes that are searched, and those that may rank again."""
RESCORES = (2, 4, 8)
SOURCES = ("trained", "frozen")
MAX_ROWS = 20_000  # that are searched, and whose second moments tell the directions


@dataclasses.dataclass(frozen=True)
class Cut:
    """An embedding, cut."""

    source: str
    """"trained", or "frozen" for the features themselves."""
    is_mixed: bool
    """Whether the directions are mixed, after the cut, so that each holds as much as any other: coarse codes keep more
    of some embeddings then, and cosine similarities stay."""
    width: int

    def __str__(self) -> str:
        return f"{self.source}{', mixed' if self.is_mixed else ''}"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A cut and its codes, with what they keep of held-out items."""

    cut: Cut
    form: SearchForm
    means: list[float]
    """Of each promise."""
    bounds: list[float]
    """What the means surely are; where a mean is too low, the mean."""

    def is_kept(self, items: PromisedItems) -> bool:
        """Whether all promises are surely kept."""
        return all(each.is_kept_by(bound) for each, bound in zip(items.promises, self.bounds, strict=True))

    def __str__(self) -> str:
        return f"{self.form} of the {self.cut.source} embedding"


class Embeddings:
    """What a head, or none, makes of items, and how that is cut.

    Args:
        head: None for the frozen features.
        features: [n, D] of unit length, of training items, whose moments order the directions.
    """

    def __init__(self, head: Head | None, features: np.ndarray):
        self.head, self.dim = head, features.shape[1] if head is None else head.embedding_dim
        self.widths = sorted({max(1, round(self.dim * share / 8) * 8) for share in SHARES} | {self.dim})
        self.widths = [width for width in self.widths if width <= self.dim]
        if head is not None and len(head.widths) > 1:
            self.widths, self.directions = list(head.widths), np.eye(self.dim)
        else:
            some = self.of(features[:: max(1, len(features) // MAX_ROWS)]).astype(np.float64)
            # About zero, not the mean: where nothing is cut similarities stay.
            self.directions = np.linalg.eigh(some.T @ some)[1][:, ::-1]

    def of(self, features: np.ndarray) -> np.ndarray:
        """Embeddings [n, E] of unit length of features [n, D]."""
        return unit_rows(features) if self.head is None else embed(self.head, features)

    def matrix(self, cut: Cut) -> np.ndarray:
        """What maps embeddings to a cut, [E, w]."""
        kept = self.directions[:, : cut.width]
        if cut.is_mixed:
            random = np.random.default_rng(cut.width).normal(size=(cut.width, cut.width))
            kept = kept @ np.linalg.qr(random)[0]
        return kept.astype(np.float32)

    def head_of(self, cut: Cut) -> Head:
        """The head that gives the cut at once."""
        matrix = self.matrix(cut)
        if self.head is None:
            head = Head(cut.width)
            head.build((None, self.dim))
            head.kernel.assign(matrix)
            return head
        given = {"widths": None, "width_weights": None, "embedding_dim": cut.width}
        head = Head.from_config({**self.head.get_config(), **given})
        head.build((None, self.head.kernel.shape[0]))
        inside = ("hidden_kernel", "hidden_bias")  # all others end in the embedding
        for name in ("kernel", "bias", "delta", "hidden_out", *inside):
            if hasattr(self.head, name):
                weight = getattr(self.head, name).numpy()
                getattr(head, name).assign(weight if name in inside else weight @ matrix)
        return head


def held_out_head(workdir: pathlib.Path, head: Head) -> Head:
    """The run's head as it was before it saw the held-out items. Raises ConfigError where the run kept none."""
    path = workdir / HELD_OUT_HEAD
    if not path.exists():
        raise ConfigError(
            f"Received --model {workdir}, a run without {HELD_OUT_HEAD}; expected one of this version, which keeps the "
            "head that held-out items can be measured with. Run train.py again."
        )
    head = copy_head(head)
    with np.load(path, allow_pickle=False) as weights:
        head.set_weights([weights[name] for name in weights.files])
    return head


def scored_items(dataset: Dataset, positions: np.ndarray) -> np.ndarray:
    """So many of these positions that codes can be compared on, in whole classes, where all have one."""
    if len(dataset.labelled(positions)) == len(positions):
        return some_classes(positions, dataset.labels)
    return np.sort(np.random.default_rng(0).permutation(positions)[:MAX_SCORED_ITEMS])


def halves(dataset: Dataset, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """These positions in two halves, in random order; of items that all have a class, no class is in both."""
    order = np.random.default_rng(0).permutation(positions)
    units = dataset.labels[order] if len(dataset.labelled(order)) == len(order) else order
    unique = np.unique(units)
    is_first = np.isin(units, np.random.default_rng(1).permutation(unique)[: (len(unique) + 1) // 2])
    return order[is_first], order[~is_first]


def promised_items(dataset: Dataset, positions: np.ndarray, promises, num_asking: int | None = None) -> PromisedItems:
    """The items at these positions, with their labels, where the data has some; the first so many query."""
    labels = dataset.labels[positions] if dataset.has_labels else None
    return PromisedItems(np.asarray(UnitRows(dataset.features, positions)), labels, promises, num_asking)


def walk(dataset: Dataset, head: Head, promises) -> tuple[PromisedItems, list[Candidate]]:
    """All candidates, measured with a bar: validation items query themselves and half of the training items.

    Among themselves alone they would find it too easy: the more items there are, the nearer lie those that a coarse
    code cannot tell apart. The other half orders the directions of a cut, which suit the items that they were made of.

    Args:
        dataset: the items.
        head: that did not train on the validation items.
        promises: that are asked for.
    """
    asking = scored_items(dataset, dataset.splits.validation)
    ordering, others = halves(dataset, dataset.splits.train)
    positions = np.concatenate([asking, others[: MAX_ROWS - len(asking)]])
    items = promised_items(dataset, positions, promises, len(asking))
    features, half = (np.asarray(UnitRows(dataset.features, each)) for each in (positions, ordering))
    sources = {"trained": Embeddings(head, half), "frozen": Embeddings(None, half)}
    cuts = [
        Cut(name, is_mixed, width)
        for name, source in sources.items()
        for width in source.widths
        for is_mixed in (False, True)
    ]
    found: list[Candidate] = []
    with progress.bar("compress", len(cuts), "cuts") as bar:
        for cut in cuts:
            source = sources[cut.source]
            found += candidates_of(cut, source.of(features) @ source.matrix(cut), items)
            bar.advance()
    return items, found


def candidates_of(cut: Cut, vectors: np.ndarray, items: PromisedItems) -> Iterator[Candidate]:
    """All codes of a cut [N, w], measured."""
    queries, k = vectors[items.queries], items.num_found + 1
    for code, finer in FORMS:
        if cut.is_mixed and code in ("float32", "float16"):
            continue  # nothing is lost that mixing would keep
        rescores = RESCORES if finer else ()
        nearest, _ = CodedSearch.of(vectors, SearchForm(cut.width, code)).candidates(queries, k * max((1, *rescores)))
        yield measured(cut, SearchForm(cut.width, code), nearest[:, :k], items)
        for rank in finer:
            search = CodedSearch.of(vectors, SearchForm(cut.width, code, rank, max(rescores)))
            for rescore in rescores:
                again, _ = search.ranked_again(queries, nearest[:, : rescore * k], k)
                yield measured(cut, SearchForm(cut.width, code, rank, rescore), again, items)


def measured(cut: Cut, form: SearchForm, found: np.ndarray, items: PromisedItems) -> Candidate:
    """A candidate, by what its queries found, [Q, num_found + 1] with themselves."""
    values = items.values(without_own(found, items.queries))
    means = [float(each.mean()) for each in values]
    is_near = all(each.is_kept_by(mean) for each, mean in zip(items.promises, means, strict=True))
    return Candidate(cut, form, means, items.bounds(values) if is_near else means)


def smallest(items: PromisedItems, candidates: list[Candidate], counts_all: bool = False) -> Candidate | None:
    """Of those that keep all promises the one of the fewest bytes, None where none does.

    Bytes are those in memory, and then those on the disk; with `counts_all` both together.
    """
    kept = [each for each in candidates if each.is_kept(items)]
    return min(kept, key=lambda each: (size_of(each.form, counts_all), _total(each.form), -each.means[0]), default=None)


def nearest_to_it(items: PromisedItems, candidates: list[Candidate]) -> Candidate:
    """The candidate that lacks least of the promise that it lacks most of; of equals the smallest."""

    def lacking(each: Candidate) -> float:
        return max(max(0, promise.least - bound) for promise, bound in zip(items.promises, each.bounds, strict=True))

    return min(candidates, key=lambda each: (round(lacking(each), 6), size_of(each.form, False)))


def size_of(form: SearchForm, counts_all: bool) -> int:
    """Bytes of an item that a promise is about."""
    return _total(form) if counts_all else form.bytes_in_memory


def _total(form: SearchForm) -> int:
    return form.bytes_in_memory + form.bytes_on_disk


def final_embeddings(dataset: Dataset, head: Head, source: str) -> Embeddings:
    """Of the run's head, its directions ordered by all items that it trained on."""
    positions = np.union1d(dataset.splits.train, dataset.splits.validation)
    return Embeddings(head if source == "trained" else None, np.asarray(UnitRows(dataset.features, positions)))


def tested(dataset: Dataset, embeddings: Embeddings, chosen: Candidate, promises) -> Candidate | None:
    """The same candidate on test items; None where none, or too few, are there to tell."""
    positions = np.random.default_rng(0).permutation(dataset.splits.test)[:MAX_ROWS]
    try:
        items = promised_items(dataset, positions, promises)
    except ValueError:
        return None
    vectors = embeddings.of(np.asarray(UnitRows(dataset.features, positions))) @ embeddings.matrix(chosen.cut)
    found, _ = CodedSearch.of(vectors, chosen.form).find(vectors[items.queries], items.num_found + 1)
    return measured(chosen.cut, chosen.form, found, items)


def export(
    workdir: pathlib.Path,
    model: XBMModel,
    config: Config,
    metrics: dict,
    dataset: Dataset,
    held_out: Head,
    chosen: Candidate,
    said: str,
) -> pathlib.Path:
    """Write the next version of the run's export, which gives the cut and its codes.

    Beside it lie `search.json`, how to search with it, and the thresholds of its own similarities.
    """
    head = final_embeddings(dataset, model.head, chosen.cut.source).head_of(chosen.cut)
    stages = {name: getattr(model, name) for name in STAGES}
    compressed = XBMModel(**{**stages, "head": head, "start_alignment": None})
    compressed.build({"features": (None, model.memory.feature_dim)})
    codes = [name for name in (chosen.form.search, chosen.form.rank) if name and name != "float32"]
    config = config.model_copy(
        update={
            "export": config.export.model_copy(update={"codes": codes}),
            "head": config.head.model_copy(update={"embedding_dim": chosen.cut.width, "widths": None}),
        }
    )

    def add_files(version: pathlib.Path) -> None:
        chosen.form.write(version)
        card = version / "model_card.md"
        write_whole(card, f"{card.read_text('utf-8')}\n## How to search with it\n\n{said}\n")
        (version / THRESHOLDS).unlink(missing_ok=True)
        write_own_thresholds(version, dataset, held_out, chosen)

    return export_model(workdir, compressed, config, metrics, add_files)


def write_own_thresholds(version: pathlib.Path, dataset: Dataset, held_out: Head, chosen: Candidate) -> None:
    """Thresholds of the similarities that a search by these codes gives, where held-out items have labels."""
    known = dataset.labelled(dataset.splits.validation)
    if not len(known):
        return
    positions = some_classes(known, dataset.labels)
    features, trained = (np.asarray(UnitRows(dataset.features, each)) for each in (positions, dataset.splits.train))
    source = Embeddings(held_out if chosen.cut.source == "trained" else None, trained)
    vectors = source.of(features) @ source.matrix(chosen.cut)
    stored = CODES[chosen.form.rank or chosen.form.search].rounded(vectors)
    if (found := measure_thresholds(vectors, dataset.labels[positions], stored)) is not None:
        found.write(version)
