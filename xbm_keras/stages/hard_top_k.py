"""Top-k sample: which memory rows each anchor is paired with."""

from typing import Literal, NamedTuple

import keras
import tensorflow as tf

from xbm_keras.stages.circular_memory import Rows
from xbm_keras.stages.cosine_scores import cosine_scores

Count = int | Literal["all"]
POSITIVES = ("hardest", "easiest", "random")


class Picks(NamedTuple):
    """The pairs of a step: per anchor T memory rows."""

    indices: tf.Tensor
    """[B, T] int32, rows of the memory. Where `is_valid` is False it is some row inside the memory."""
    is_positive: tf.Tensor
    """[B, T] bool: the pick has the anchor's label."""
    is_valid: tf.Tensor
    """[B, T] bool: there was such a row; False fills up where fewer than k were to be had."""
    feature_scores: tf.Tensor
    """[B, T] float32, cosine similarity of anchor and pick in the space of the frozen features."""


@keras.saving.register_keras_serializable("xbm_keras")
class HardTopK(keras.layers.Layer):
    """Per anchor the hardest negatives and a choice of positives, from the score matrix of batch against memory.

    A row that carries the anchor's own sample id is masked before anything is picked, so a sample never meets itself,
    nor the copy of itself that the last epoch left. k larger than what the memory holds is legal: the rest is masked.

    Args:
        num_negatives: rows of another label, those with the highest score; or "all".
        num_positives: rows of the anchor's label; or "all".
        positives: which positives: "hardest" (lowest score), "easiest" (highest score) or "random".
        max_rows_for_all: "all" makes picks of the memory's width; above this many rows it is refused.
        seed: of the random positives. The generator's state is saved with the model.

    Raises:
        ValueError: for negative counts, for nothing to pick, for an unknown `positives`.

    Reference:
        Hard negatives in SMEC's memory module, arXiv 2510.12474, section 3.3.
    """

    def __init__(
        self,
        num_negatives: Count = 32,
        num_positives: Count = 8,
        positives: str = "random",
        max_rows_for_all: int = 65_536,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        for name, count in (("num_negatives", num_negatives), ("num_positives", num_positives)):
            if count != "all" and (not isinstance(count, int) or count < 0):
                raise ValueError(f"Received {name}={count!r}; expected a whole number, 0 or more, or 'all'.")
        if num_negatives == num_positives == 0:
            raise ValueError(
                "Received num_negatives=0 and num_positives=0, which leaves no pairs; make at least one of them 1."
            )
        if positives not in POSITIVES:
            raise ValueError(f"Received positives={positives!r}; expected one of {', '.join(POSITIVES)}.")
        self.num_negatives = num_negatives
        self.num_positives = num_positives
        self.positives = positives
        self.max_rows_for_all = max_rows_for_all
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def num_picks(self, num_rows: int) -> int:
        """T for a memory of `num_rows` rows."""
        if self.num_negatives == self.num_positives == "all":
            return num_rows
        return sum(num_rows if count == "all" else count for count in (self.num_negatives, self.num_positives))

    def call(
        self, anchor_keys: tf.Tensor, row_keys: tf.Tensor, rows: Rows, labels: tf.Tensor, sample_ids: tf.Tensor
    ) -> Picks:
        """Pick T rows for each anchor. No gradient passes.

        Args:
            anchor_keys: [B, K] unit vectors, the space in which hardness is measured: features or embeddings.
            row_keys: [M, K] unit vectors of the same space.
            rows: the memory.
            labels: [B] int64 of the anchors.
            sample_ids: [B] int64 of the anchors.
        """
        scores = cosine_scores(tf.stop_gradient(anchor_keys), tf.stop_gradient(row_keys))  # [B, M]
        is_other = rows.is_valid[None, :] & (sample_ids[:, None] != rows.sample_ids[None, :])
        is_same_class = labels[:, None] == rows.labels[None, :]
        if self.num_negatives == self.num_positives == "all":
            self._refuse_all_of_many(rows)
            indices = tf.broadcast_to(tf.range(tf.shape(scores)[1])[None, :], tf.shape(scores))
            return Picks(indices, is_same_class, is_other, scores)

        preference = {"hardest": -scores, "easiest": scores}.get(self.positives)
        if preference is None:
            seed = self.seed_generator.next()
            # Bits, because TensorFlow's random floats differ between graph and XLA (tensorflow#121243); 24 of them, the
            # most that float32 holds exactly.
            bits = tf.random.stateless_uniform(
                tf.shape(scores), tf.cast(seed, tf.int64), None, None, tf.uint32, alg="philox"
            )
            preference = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32)
        positives = self._pick(preference, is_other & is_same_class, self.num_positives, rows)
        negatives = self._pick(scores, is_other & ~is_same_class, self.num_negatives, rows)
        indices = tf.concat([positives[0], negatives[0]], axis=1)
        is_valid = tf.concat([positives[1], negatives[1]], axis=1)
        is_positive = tf.concat([tf.ones_like(positives[1]), tf.zeros_like(negatives[1])], axis=1)
        return Picks(indices, is_positive, is_valid, tf.gather(scores, indices, batch_dims=1))

    def _pick(self, preference, is_candidate, count, rows):
        """Indices [B, k] and validity [B, k] of the candidates that are preferred most."""
        if count == "all":
            self._refuse_all_of_many(rows)
            indices = tf.broadcast_to(tf.range(tf.shape(preference)[1])[None, :], tf.shape(preference))
            return indices, is_candidate
        num_rows = tf.shape(preference)[1]
        preference = tf.where(is_candidate, preference, -float("inf"))
        # Columns of -inf make top_k legal where the memory has fewer than k rows.
        preference = tf.pad(preference, [[0, 0], [0, tf.maximum(count - num_rows, 0)]], constant_values=-float("inf"))
        best, indices = tf.math.top_k(preference, k=count)
        is_valid = best > -float("inf")
        return tf.where(is_valid, indices, 0), is_valid

    def _refuse_all_of_many(self, rows):
        num_rows = rows.features.shape[0]
        if num_rows is not None and num_rows > self.max_rows_for_all:
            raise ValueError(
                f"Received 'all' with a memory of {num_rows} rows; expected at most {self.max_rows_for_all}. "
                "Give a number of picks, such as num_negatives=32, or raise max_rows_for_all."
            )

    def save_own_variables(self, store):
        """Weights, and the state of the random positives: Keras by itself does not save seed generators."""
        super().save_own_variables(store)
        store["seed_state"] = self.seed_generator.state.value.numpy()

    def load_own_variables(self, store):
        """What `save_own_variables` stored."""
        self.seed_generator.state.assign(store["seed_state"])

    def get_config(self):
        """Arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        return {
            **config,
            "num_negatives": self.num_negatives,
            "num_positives": self.num_positives,
            "positives": self.positives,
            "max_rows_for_all": self.max_rows_for_all,
            "seed": self.seed,
        }
