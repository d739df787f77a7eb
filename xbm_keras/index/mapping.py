"""Vectors of one network mapped into the space of another, in closed form, from items that both embedded.

So an index need not be embedded again: a sample of its items is, and the map of the sample is applied to the rest.

Letters: n pairs, O width of the old vectors, E width of the new ones, r rank.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow
import pyarrow.compute

from xbm_keras.evaluation.exact_search import find_nearest
from xbm_keras.evaluation.metrics import map_at_r, neighbor_overlap
from xbm_keras.geometry import unit_rows
from xbm_keras.index.gallery import Gallery

FOLDS = 3  # in which the map is chosen
RIDGES = (1e-2, 1e-1, 1.0, 10.0)  # times the mean squared singular value of the pairs
RANK_SHARES = (1.0, 0.5, 0.25)  # of the highest rank that the pairs allow
MIN_PAIRS = 20
MAX_PAIRS = 10_000  # that a map is fitted to; more add minutes, and little else
HELD_OUT = 0.2  # of the pairs: they say how well the map does
MAX_HELD_OUT = 2_000
NEIGHBORS = 10
MAPPED = "mapped"  # column of the items


@dataclasses.dataclass(frozen=True)
class AffineMap:
    """old [n, O] to new vectors [n, E] of unit length."""

    name: str
    weights: np.ndarray
    """[O, E]."""
    old_mean: np.ndarray
    """[O], of the pairs."""
    new_mean: np.ndarray
    """[E]."""

    def __call__(self, old: np.ndarray) -> np.ndarray:
        """New vectors [n, E] float32 of unit length."""
        return unit_rows(((old - self.old_mean) @ self.weights + self.new_mean).astype(np.float32))


def candidates(old: np.ndarray, new: np.ndarray) -> Iterator[AffineMap]:
    """Maps of old [n, O] onto new [n, E]: the rotation, and affine ones of several ridges and ranks.

    The rotation, with a scale, keeps all angles; where the widths differ, it is the nearest map with orthonormal rows
    or columns. The affine ones are ridge regressions whose answers are projected onto their own principal directions.

    Reference:
        Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966; Mukherjee and Zhu, "Reduced
        rank ridge regression and its kernel extensions", 2011.
    """
    means = [each.mean(axis=0, dtype=np.float64).astype(np.float32) for each in (old, new)]
    centred_old, centred_new = old - means[0], new - means[1]
    left, strengths, right = np.linalg.svd(centred_old.T @ centred_new, full_matrices=False)
    scale = strengths.sum() / max(np.square(centred_old).sum(), np.finfo(np.float32).tiny)
    yield AffineMap("rotation", scale * (left @ right), *means)

    of_pairs, sizes, directions = np.linalg.svd(centred_old, full_matrices=False)
    moments = of_pairs.T @ centred_new
    for ridge in RIDGES:
        lengths = np.sqrt(sizes**2 + ridge * np.square(sizes).mean())
        damping = sizes / lengths**2
        # Of the pairs and of the rows that make ridge regression one of least squares.
        _, _, principal = np.linalg.svd((sizes / lengths)[:, None] * moments, full_matrices=False)
        weights = directions.T @ (damping[:, None] * moments)
        for share in RANK_SHARES:
            rank = max(1, round(share * len(principal)))
            kept = weights if share == 1 else weights @ principal[:rank].T @ principal[:rank]
            yield AffineMap(f"affine of rank {rank}, ridge {ridge:g}", kept, *means)


def fit_map(old: np.ndarray, new: np.ndarray, seed: int = 0) -> AffineMap:
    """The map whose answers for held-out pairs are nearest to their new vectors, fitted to all pairs.

    Args:
        old: [n, O] of unit length.
        new: [n, E] of unit length, of the same items.
        seed: of the folds.
    """
    folds = np.random.default_rng(seed).permutation(len(old)) % FOLDS
    scores = sum(_scores(old, new, folds == fold) for fold in range(FOLDS))
    return list(candidates(old, new))[int(np.argmax(scores))]


def _scores(old: np.ndarray, new: np.ndarray, is_held_out: np.ndarray) -> np.ndarray:
    """Summed similarity of each candidate's answers with the held-out new vectors."""
    fitted = candidates(old[~is_held_out], new[~is_held_out])
    return np.array([np.einsum("ne,ne->", each(old[is_held_out]), new[is_held_out]) for each in fitted])


def map_gallery(old: Gallery, new: Gallery) -> tuple[Gallery, dict]:
    """The old items that the new model did not embed, mapped into its space by those that it did.

    Args:
        old: items of the old model.
        new: items of the new model; those with `mapped` true are no pairs, and are mapped anew.

    Returns:
        The mapped items, with a column `mapped`, and what held-out pairs say: `map`, `pairs`, `held_out`,
        `recall_at_10`, the share of the 10 nearest by new vectors that new queries find among mapped vectors; and,
        where labels allow it, `map_at_r` of new queries among mapped vectors and `map_at_r_new` among new ones.

    Raises:
        ValueError: for too few items in both, or none to map.
    """
    if MAPPED in new.items.column_names:
        new = new.take(~pyarrow.compute.fill_null(new.items[MAPPED], False).to_numpy())
    places = pyarrow.compute.index_in(new.items["id"], value_set=old.items["id"]).to_numpy()
    shared = np.flatnonzero(~np.isnan(places))
    if len(shared) < MIN_PAIRS:
        raise ValueError(
            f"Received {len(shared)} items that both indexes hold; expected at least {MIN_PAIRS}, better thousands. "
            "Embed more of the old items with the new model, and add them to the new index, under the same ids."
        )
    rest = old.take(~new.holds(old.ids))
    if not len(rest.items):
        raise ValueError(
            "Received an old index whose items the new one holds all; expected more to map. Use the new one."
        )
    shared = np.random.default_rng(0).permutation(shared)
    num_held_out = min(MAX_HELD_OUT, round(HELD_OUT * len(shared)))
    held_out, pairs = shared[:num_held_out], shared[num_held_out:][:MAX_PAIRS]
    old_of = lambda rows: old.vectors[places[rows].astype(np.int64)]  # noqa: E731
    chosen = fit_map(old_of(pairs), new.vectors[pairs])
    mapped, true, labels = chosen(old_of(held_out)), new.vectors[held_out], new.labels[held_out]
    own = np.arange(num_held_out)
    about = {"map": chosen.name, "pairs": len(pairs), "held_out": num_held_out}
    about["recall_at_10"] = overlap(find_nearest(true, mapped, NEIGHBORS, own), true)
    if (score := class_score(true, mapped, labels)) is not None:
        about |= {"map_at_r": score, "map_at_r_new": class_score(true, true, labels)}
    # Without the hash of its content an item counts as changed, so that `sync` embeds it by the new model.
    left_out = [name for name in (MAPPED, "sha256") if name in rest.items.column_names]
    items = rest.items.drop_columns(left_out)
    items = items.append_column(MAPPED, pyarrow.array(np.ones(len(items), bool)))
    return Gallery(chosen(rest.vectors), items), about


def overlap(found: np.ndarray, new: np.ndarray) -> float:
    """Share of the nearest new vectors [n, E] of each other that are among what was found for each, rows [n, k]."""
    k = found.shape[1]
    return float(neighbor_overlap(found, find_nearest(new, new, k, np.arange(len(new))), k).mean())


def class_score(queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> float | None:
    """MAP@R of queries [n, E] in a gallery [n, E] of the same items, but each one's own; None of unique labels."""
    _, classes, sizes = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    num_relevant = np.where(labels == "", 0, sizes[classes] - 1)
    asked = np.flatnonzero(num_relevant)
    if not len(asked):
        return None
    found = find_nearest(queries[asked], gallery, int(num_relevant.max()), asked)
    return float(map_at_r(classes[found] == classes[asked][:, None], num_relevant[asked]).mean())
