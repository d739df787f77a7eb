"""The fewest bytes that keep a promise: widths, codes and rescoring of a run's embedding, tried on held-out queries.

Letters: N gallery items, Q queries, D feature width, E embedding width, w width of a cut.
"""

import dataclasses
import itertools
import logging
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from xbm_keras import progress
from xbm_keras.atomic_files import write_whole
from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.evaluation.layered_codes import TRELLIS, layers_of
from xbm_keras.evaluation.promises import Trial
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.evaluation.thresholds import FILE as THRESHOLDS
from xbm_keras.evaluation.thresholds import measure_thresholds
from xbm_keras.experiment.phases import HELD_OUT_HEAD, copy_head
from xbm_keras.experiment.run_folder import export_model
from xbm_keras.experiment.trials import MAX_ROWS, HeldOut, Trials
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
    19 / 24,
    1,
)  # of the full width, that are tried where none are nested
FORMS = (
    ("float32", ()),
    ("float16", ()),
    ("int8", ()),
    ("int4", ("int8",)),
    ("trellis", ()),
    ("binary", ("int8", "int4")),
)
"""Codes that are tried for the search, and those that may rank again."""
MIXED = (0, 1, len(TRELLIS.positive))
"""In how many parts directions are mixed: not at all, all of them, each layer."""
MIXED_FOR = {
    "float32": (0,),
    "float16": (0,),
    "trellis": (len(TRELLIS.positive),),
}  # which lose nothing; which needs it
RESCORES = (2, 4, 8)
SOURCES = ("trained", "frozen")


@dataclasses.dataclass(frozen=True)
class Cut:
    """An embedding, cut."""

    source: str
    """"trained", or "frozen" for the features themselves."""
    blocks: int
    """How many parts of its directions are mixed after the cut, each in itself; 0 for none. A direction of a part holds
    as much as any other of it then, of which coarse codes keep more, and cosine similarities stay."""
    width: int

    def __str__(self) -> str:
        return f"{self.source}{', mixed' if self.blocks else ''}"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A cut and its codes, with what they keep of held-out items."""

    cut: Cut
    form: SearchForm
    means: list[float]
    """Of each promise."""
    bounds: list[float]
    """What the means surely are; where a mean is too low, the mean."""

    def is_kept(self, trial: Trial) -> bool:
        """Whether all promises are surely kept."""
        return all(each.is_kept_by(bound) for each, bound in zip(trial.promises, self.bounds, strict=True))

    def __str__(self) -> str:
        return f"{self.form} of the {self.cut.source} embedding"


class Embeddings:
    """What a head, or none, makes of queries and of what they search, and how that is cut.

    Args:
        head: None for the frozen features.
        features: [n, D] of unit length, of what is searched, whose moments order the directions.
    """

    def __init__(self, head: Head | None, features: np.ndarray):
        self.head, self.dim = head, features.shape[1] if head is None else head.embedding_dim
        nested = (self.dim,) if head is None else head.widths
        self.widths = sorted({max(1, round(self.dim * share / 8) * 8) for share in SHARES} | set(nested))
        self.widths = [width for width in self.widths if width <= self.dim]
        some = self.of_gallery(features[:: max(1, len(features) // MAX_ROWS)]).astype(np.float64)
        self.directions = np.zeros((self.dim, self.dim))
        for start, stop in itertools.pairwise([0, *nested]):
            # In the order of what they hold, from each nested width to the next, at which nothing changes. About zero,
            # not the mean: where nothing is cut similarities stay.
            part = some[:, start:stop]
            self.directions[start:stop, start:stop] = np.linalg.eigh(part.T @ part)[1][:, ::-1]

    def of_queries(self, features: np.ndarray) -> np.ndarray:
        """Embeddings [n, E] of unit length of features [n, D]."""
        return unit_rows(features) if self.head is None else embed(self.head, features)

    def of_gallery(self, features: np.ndarray) -> np.ndarray:
        """The same of what is searched, which passes a head of other sides than "both" otherwise."""
        return unit_rows(features) if self.head is None else embed(self.head, features, of_rows=True)

    def matrix(self, cut: Cut) -> np.ndarray:
        """What maps embeddings to a cut, [E, w]."""
        kept = self.directions[:, : cut.width]
        if cut.blocks:
            random, parts = np.random.default_rng(cut.width), []
            for layer in layers_of(cut.width, cut.blocks):
                part = kept[:, layer]
                parts.append(part @ np.linalg.qr(random.normal(size=(part.shape[1], part.shape[1])))[0])
            kept = np.concatenate(parts, axis=1)
        return kept.astype(np.float32)

    def head_of(self, cut: Cut) -> Head:
        """The head that gives the cut at once; of queries alone one of two sides, since documents are cut as well."""
        matrix = self.matrix(cut)
        if self.head is None:
            return _linear(matrix)
        sides = "both" if self.head.sides == "both" else "two"
        given = {"widths": None, "width_weights": None, "embedding_dim": cut.width, "sides": sides}
        head = Head.from_config({**self.head.get_config(), **given})
        head.build((None, self.head.kernel.shape[0]))
        _assign(head, self.head, matrix)
        if sides == "two":
            rows = self.head.row_layer if self.head.sides == "two" else _linear(np.eye(self.dim, dtype=np.float32))
            _assign(head.row_layer, rows, matrix)
        return head


def held_out_head(workdir: pathlib.Path, head: Head) -> Head:
    """The run's head as it was before it saw the held-out items. Raises ConfigError where there is none."""
    path = workdir / HELD_OUT_HEAD
    if not path.exists():
        raise ConfigError(
            f"Received --model {workdir}, a run without {HELD_OUT_HEAD}; expected one of this version, which keeps the "
            "head that held-out items can be measured with. Run train.py again."
        )
    head = copy_head(head)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as weights:
            head.set_weights([weights[name] for name in weights.files])
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"Received {path}, which is damaged ({type(error).__name__}: {error}); expected the head as the run wrote "
            "it. Run train.py again."
        ) from error
    return head


def walk(held_out: HeldOut, head: Head) -> list[Candidate]:
    """All candidates, measured with a bar.

    Args:
        held_out: the search that they are measured by.
        head: that did not train on what is held out.
    """
    trial = held_out.trial
    found: list[Candidate] = []
    sources = {"trained": Embeddings(head, held_out.ordering), "frozen": Embeddings(None, held_out.ordering)}
    with progress.bar("compress", len(MIXED) * sum(len(source.widths) for source in sources.values()), "cuts") as bar:
        for name, source in sources.items():
            queries, gallery = source.of_queries(trial.queries), source.of_gallery(trial.gallery)
            for width in source.widths:
                for blocks in MIXED:
                    cut = Cut(name, blocks, width)
                    matrix = source.matrix(cut)
                    found += candidates_of(cut, queries @ matrix, gallery @ matrix, trial)
                    bar.advance()
    return found


def candidates_of(cut: Cut, queries: np.ndarray, gallery: np.ndarray, trial: Trial) -> Iterator[Candidate]:
    """All codes of a cut gallery [N, w], measured by queries [Q, w]."""
    k = trial.num_found
    for code, finer in FORMS:
        if cut.blocks not in MIXED_FOR.get(code, (0, 1)):
            continue
        rescores = RESCORES if finer else ()
        nearest, _ = CodedSearch.of(gallery, SearchForm(cut.width, code)).candidates(queries, k * max((1, *rescores)))
        yield measured(cut, SearchForm(cut.width, code), nearest[:, :k], trial)
        for rank in finer:
            search = CodedSearch.of(gallery, SearchForm(cut.width, code, rank, max(rescores)))
            for rescore in rescores:
                again, _ = search.ranked_again(queries, nearest[:, : rescore * k], k)
                yield measured(cut, SearchForm(cut.width, code, rank, rescore), again, trial)


def measured(cut: Cut, form: SearchForm, found: np.ndarray, trial: Trial) -> Candidate:
    """A candidate, by what its queries found, [Q, num_found]."""
    values = trial.values(found)
    means = [float(each.mean()) for each in values]
    is_near = all(each.is_kept_by(mean) for each, mean in zip(trial.promises, means, strict=True))
    return Candidate(cut, form, means, trial.bounds(values) if is_near else means)


def smallest(trial: Trial, candidates: list[Candidate], counts_all: bool = False) -> Candidate | None:
    """Of those that keep all promises the one of the fewest bytes, None where none does.

    Bytes are those in memory, and then those on the disk; with `counts_all` both together.
    """
    kept = [each for each in candidates if each.is_kept(trial)]
    return min(kept, key=lambda each: (size_of(each.form, counts_all), _total(each.form), -each.means[0]), default=None)


def nearest_to_it(trial: Trial, candidates: list[Candidate]) -> Candidate:
    """The candidate that lacks least of the promise that it lacks most of; of equals the smallest."""

    def lacking(each: Candidate) -> float:
        return max(max(0, promise.least - bound) for promise, bound in zip(trial.promises, each.bounds, strict=True))

    return min(candidates, key=lambda each: (round(lacking(each), 6), size_of(each.form, False)))


def size_of(form: SearchForm, counts_all: bool) -> int:
    """Bytes of an item that a promise is about."""
    return _total(form) if counts_all else form.bytes_in_memory


def _total(form: SearchForm) -> int:
    return form.bytes_in_memory + form.bytes_on_disk


def final_embeddings(trials: Trials, head: Head, source: str) -> Embeddings:
    """Of the run's head, its directions ordered by all that it may be."""
    return Embeddings(head if source == "trained" else None, trials.final_ordering())


def tested(trial: Trial, embeddings: Embeddings, chosen: Candidate) -> Candidate:
    """The same candidate by what tests."""
    matrix = embeddings.matrix(chosen.cut)
    search = CodedSearch.of(embeddings.of_gallery(trial.gallery) @ matrix, chosen.form)
    found, _ = search.find(embeddings.of_queries(trial.queries) @ matrix, trial.num_found)
    return measured(chosen.cut, chosen.form, found, trial)


def export(
    workdir: pathlib.Path,
    model: XBMModel,
    config: Config,
    metrics: dict,
    trials: Trials,
    held_out: Head,
    chosen: Candidate,
    said: str,
) -> pathlib.Path:
    """Write the next version of the run's export, which gives the cut and its codes.

    Beside it lie `search.json`, how to search with it, and the thresholds of its own similarities.
    """
    head = final_embeddings(trials, model.head, chosen.cut.source).head_of(chosen.cut)
    stages = {name: getattr(model, name) for name in STAGES}
    compressed = XBMModel(**{**stages, "head": head, "start_alignment": None})
    compressed.build({"features": (None, model.memory.feature_dim)})
    if config.export.average:
        log.warning(
            "This version embeds each picture as it is: the promise is kept by such embeddings, not by averages."
        )
    codes = [name for name in (chosen.form.search, chosen.form.rank) if name and name != "float32"]
    config = config.model_copy(
        update={
            "export": config.export.model_copy(update={"codes": codes, "average": []}),
            "head": config.head.model_copy(
                update={"embedding_dim": chosen.cut.width, "widths": None, "sides": head.sides}
            ),
        }
    )

    def add_files(version: pathlib.Path) -> None:
        chosen.form.write(version)
        card = version / "model_card.md"
        write_whole(card, f"{card.read_text('utf-8')}\n## How to search with it\n\n{said}\n")
        (version / THRESHOLDS).unlink(missing_ok=True)
        write_own_thresholds(version, trials, held_out, chosen)

    return export_model(workdir, compressed, config, metrics, add_files)


def write_own_thresholds(version: pathlib.Path, trials: Trials, held_out: Head, chosen: Candidate) -> None:
    """Thresholds of the similarities that a search by these codes gives, where held-out items have labels."""
    if (known := trials.labelled()) is None:
        return
    features, labels, trained = known
    source = Embeddings(held_out if chosen.cut.source == "trained" else None, trained)
    vectors = source.of_gallery(features) @ source.matrix(chosen.cut)
    stored = CODES[chosen.form.rank or chosen.form.search].rounded(vectors)
    if (found := measure_thresholds(vectors, labels, stored)) is not None:
        found.write(version)


def _linear(matrix: np.ndarray) -> Head:
    """A head that multiplies by a matrix [D, w] alone."""
    head = Head(matrix.shape[1])
    head.build((None, matrix.shape[0]))
    head.kernel.assign(matrix)
    return head


def _assign(head: Head, other: Head, matrix: np.ndarray) -> None:
    """The weights of another head, which all but those inside end in its embedding, times a matrix."""
    inside = ("hidden_kernel", "hidden_bias")
    for name in ("kernel", "bias", "delta", "hidden_out", *inside):
        if hasattr(other, name):
            weight = getattr(other, name).numpy()
            getattr(head, name).assign(weight if name in inside else weight @ matrix)
