"""P x K batches: `classes_per_batch` classes with `samples_per_class` items each, a function of seed and step alone."""

import threading

import numpy as np
import tensorflow as tf

from xbm_keras.data.generators import generators
from xbm_keras.data.sources import DataError
from xbm_keras.data.unit_rows import FeatureRows


class PKSampler:
    """Which items make up each step.

    Classes come in rounds: each round is a permutation of all classes, so all are drawn equally often, and no batch
    holds a class twice. Each class deals its items from a shuffled pile that is shuffled anew when it runs out, so
    every item is met before any is met again. Of a class with fewer than K items a batch holds some twice; the same
    sample id keeps such copies from being pairs.

    Args:
        labels: [N] labels of the items.
        classes_per_batch: P.
        samples_per_class: K.
        seed: of all shuffling.
        is_left_out: [N] bool, items that are in no batch; by default none.

    Raises:
        DataError: if there are fewer classes than P.

    Example:
        >>> sampler = PKSampler(np.array([0, 0, 1, 1, 2, 2]), classes_per_batch=2, samples_per_class=2)
        >>> sampler.batch_size, sampler.num_items
        (4, 6)
    """

    def __init__(
        self,
        labels: np.ndarray,
        classes_per_batch: int,
        samples_per_class: int,
        seed: int = 0,
        is_left_out: np.ndarray | None = None,
    ):
        drawn = np.arange(len(labels)) if is_left_out is None else np.flatnonzero(~is_left_out)
        names, codes = np.unique(np.asarray(labels)[drawn], return_inverse=True)
        if len(names) < classes_per_batch:
            raise DataError(
                f"Received {classes_per_batch=} with {len(names)} training classes; expected at most {len(names)}. "
                "Lower it, and raise samples_per_class to keep the size of a batch."
            )
        self.classes_per_batch = classes_per_batch
        self.samples_per_class = samples_per_class
        self.seed = seed
        order = np.argsort(codes, kind="stable")
        self.members = np.split(drawn[order], np.cumsum(np.bincount(codes))[:-1])
        self._rounds: dict[int, np.ndarray] = {}
        # One pile of each class is kept, as to make a generator takes longer than to deal: all of them in a row.
        self._sizes = np.array([len(members) for members in self.members])
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._piles = np.full(len(self.members), -1)
        self._shuffled = np.empty(len(order), np.int64)
        # Of what is kept: `fit` looks at the shapes of its data while it iterates over them.
        self._lock = threading.Lock()

    @property
    def num_items(self) -> int:
        """N, less those that are left out."""
        return sum(map(len, self.members))

    @property
    def batch_size(self) -> int:
        """P x K."""
        return self.classes_per_batch * self.samples_per_class

    def __call__(self, step: int) -> np.ndarray:
        """Positions [P * K] of the items of a step, class by class. Threads may share a sampler."""
        with self._lock:
            return self._deal(step)

    def _deal(self, step):
        slots = step * self.classes_per_batch + np.arange(self.classes_per_batch)
        rounds, places = np.divmod(slots, len(self.members))
        codes = np.concatenate([self._round(r)[places[rounds == r]] for r in range(rounds[0], rounds[-1] + 1)])  # [P]
        # Where the items stand in the endless row of their class's piles, one after the other, [P, K].
        dealt = rounds[:, None] * self.samples_per_class + np.arange(self.samples_per_class)
        piles, places = np.divmod(dealt, self._sizes[codes, None])
        # A batch may take from several piles of a class, one by one; the last one stays.
        is_new = piles != np.concatenate([self._piles[codes, None], piles[:, :-1]], axis=1)
        columns, rows = np.nonzero(is_new.T)
        seeds = [
            [self.seed, 1, *pair] for pair in zip(codes[rows].tolist(), piles[rows, columns].tolist(), strict=True)
        ]
        generator = generators(seeds)
        positions = np.empty_like(dealt)
        for column in range(self.samples_per_class):
            for code in codes[is_new[:, column]].tolist():
                first, last = self._starts[code], self._starts[code] + self._sizes[code]
                self._shuffled[first:last] = next(generator).permutation(self.members[code])
            positions[:, column] = self._shuffled[self._starts[codes] + places[:, column]]
        self._piles[codes] = piles[:, -1]
        return positions.reshape(-1)

    def _round(self, number: int) -> np.ndarray:
        """Order of the classes in a round. Where a batch spans two rounds, the second does not repeat the first's."""
        if number not in self._rounds and number - 1 not in self._rounds:  # a jump: each depends on the one before
            self._rounds = {0: self._rng(0, 0).permutation(len(self.members))}
            for i in range(1, number):
                self._round(i)
        if number not in self._rounds:
            previous, order = self._rounds[number - 1], self._rng(0, number).permutation(len(self.members))
            num_taken = number * len(self.members) % self.classes_per_batch  # of the common batch, by the round before
            is_taken = np.isin(order, previous[len(previous) - num_taken :])
            # Stable: classes that the common batch already holds come after the others.
            self._rounds = {number - 1: previous, number: order[np.argsort(is_taken, kind="stable")]}
        return self._rounds[number]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])


def alone_in_class(labels: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    """[N] bool, items whose class has no other item, and so no positive for them; views of an item bear its id.

    Example:
        >>> alone_in_class(np.array([0, 0, 1, 2, 2]), np.array([5, 6, 7, 8, 8])).tolist()
        [False, False, True, True, True]
    """
    classes = np.unique(labels, return_inverse=True)[1]
    order = np.lexsort((sample_ids, classes))
    is_new = np.append(True, np.diff(classes[order]) | np.diff(sample_ids[order])) != 0
    return np.bincount(classes[order], weights=is_new)[classes] < 2


class ShuffledSampler:
    """Which items make up each step where there are no classes: the items in random order, again and again.

    Args:
        num_items: N.
        batch_size: B, at most N.
        seed: of the shuffling.

    Raises:
        DataError: if there are fewer items than B.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int = 0):
        if not 1 <= batch_size <= num_items:
            raise DataError(f"Received a batch size of {batch_size} with {num_items} items; expected 1 to {num_items}.")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self._newest: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __call__(self, step: int) -> np.ndarray:
        """Positions [B] of the items of a step: every item is met before any is met again."""
        first = step * self.batch_size
        rounds = range(first // self.num_items, (first + self.batch_size - 1) // self.num_items + 1)
        start, stop = first - rounds[0] * self.num_items, first + self.batch_size - rounds[-1] * self.num_items
        if len(rounds) == 1:
            return self._round(rounds[0])[start:stop]
        return np.concatenate([self._round(rounds[0])[start:], self._round(rounds[1])[:stop]])

    def _round(self, number: int) -> np.ndarray:
        """All items in the order of a round; the newest one is kept, by an assignment that other threads see whole."""
        newest = self._newest
        if newest[0] != number:
            newest = number, np.random.default_rng([self.seed, number]).permutation(self.num_items)
            self._newest = newest
        return newest[1]


def batch_dataset(
    features,
    labels: np.ndarray,
    sample_ids: np.ndarray,
    sampler: PKSampler | ShuffledSampler,
    first_step: int = 0,
    numbers: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Endless batches `({"features": [B, D], "sample_id": [B]}, labels [B])`, from `first_step` on.

    Rows are read when they are needed: `features` may be anything that is indexed like an array. With `numbers` [N] of
    a neighbour table's anchors the inputs hold "number" [B], too.
    """
    batch_size, width = sampler.batch_size, features.shape[1]
    columns = {"sample_id": sample_ids} | ({} if numbers is None else {"number": numbers})

    def rows(step):
        positions = sampler(int(step))
        some = (each[positions] for each in (labels, *columns.values()))
        return np.asarray(features[positions], np.float32), *some

    def batch(step):
        f, *others = tf.numpy_function(rows, [step], (tf.float32, *[tf.int64] * (1 + len(columns))), stateful=False)
        # The static shape lets the model see that a batch's picks outnumber a small memory.
        y, *others = (tf.ensure_shape(each, (batch_size,)) for each in others)
        return {"features": tf.ensure_shape(f, (batch_size, width)), **dict(zip(columns, others, strict=True))}, y

    return _steps(first_step).map(batch).prefetch(tf.data.AUTOTUNE)


def query_dataset(
    queries: FeatureRows,
    query_ids: np.ndarray,
    relevant: np.ndarray,
    sampler: ShuffledSampler,
    documents: FeatureRows | None = None,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Endless batches of queries, `({"features": [B, D], "sample_id": [B]}, relevant [B, P])`, from `first_step` on.

    Args:
        queries: [n, D], read when they are needed.
        query_ids: [n].
        relevant: [n, P] positions of the documents that answer each query, at least one, and -1.
        sampler: says which queries make up a step.
        documents: [N, D]; then each query brings one of these documents, drawn at random, with its position as
            `document_id`. None where the memory holds all of them: then it brings its `number`, which one of `queries`
            it is.
        first_step: number of steps before.
    """
    batch_size, width = sampler.batch_size, queries.shape[1]
    counts = (relevant >= 0).sum(axis=1)
    in_front = np.take_along_axis(relevant, np.argsort(relevant < 0, axis=1, kind="stable"), axis=1)

    def rows(step):
        positions = sampler(int(step))
        found = [np.asarray(queries[positions], np.float32), query_ids[positions], relevant[positions]]
        if documents is not None:
            drawn = np.random.default_rng([sampler.seed, 2, int(step)]).random(len(positions))
            chosen = in_front[positions, (drawn * counts[positions]).astype(np.int64)]
            return [*found, np.asarray(documents[chosen], np.float32), chosen]
        return [*found, np.asarray(positions, np.int64)]

    names = ("number",) if documents is None else ("document", "document_id")
    shapes = [(tf.float32, (width,)), (tf.int64, ()), (tf.int64, relevant.shape[1:])]
    shapes += [(tf.int64, ())] if documents is None else [(tf.float32, (width,)), (tf.int64, ())]

    def batch(step):
        tensors = tf.numpy_function(rows, [step], [dtype for dtype, _ in shapes], stateful=False)
        f, ids, wanted, *given = (
            tf.ensure_shape(t, (batch_size, *more)) for t, (_, more) in zip(tensors, shapes, strict=True)
        )
        return {"features": f, "sample_id": ids, **dict(zip(names, given, strict=True))}, wanted

    return _steps(first_step).map(batch).prefetch(tf.data.AUTOTUNE)


def slot_dataset(slots: np.ndarray, sampler: PKSampler | ShuffledSampler, first_step: int = 0) -> tf.data.Dataset:
    """Endless batches `({"slot": [B]},)`, from `first_step` on, for a memory that holds all items.

    Args:
        slots: [N] int64, where the memory holds each item.
        sampler: says which items make up a step.
        first_step: number of steps before.
    """

    def batch(step):
        slot = tf.numpy_function(lambda step: slots[sampler(int(step))], [step], tf.int64, stateful=False)
        return ({"slot": tf.ensure_shape(slot, (sampler.batch_size,))},)

    return _steps(first_step).map(batch).prefetch(tf.data.AUTOTUNE)


def _steps(first: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(first, np.iinfo(np.int64).max)
