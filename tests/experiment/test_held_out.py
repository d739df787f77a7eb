"""Several starts that are scored at a time."""

import itertools

import numpy as np
import pytest

from xbm_keras.config.schema import HeadConfig
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.splits import Splits
from xbm_keras.experiment import chosen_head, held_out


@pytest.mark.parametrize("uses_labels", [True, False])
def test_starts_that_are_looked_at_together_score_as_one_by_one(uses_labels):
    rng, ids = np.random.default_rng(0), np.arange(72)
    labels = np.repeat(np.arange(12), 6)
    features = (rng.normal(size=(12, 20))[labels] + rng.normal(size=(72, 20))).astype(np.float32)
    splits = Splits(ids[:36], ids[36:54], ids[54:], folds=(ids[36:54], ids[:18], ids[18:36]))
    dataset = Dataset(features, labels, [*range(12)], ids, ids.astype(str), splits, {}, 0, None, ids)
    starts = [("pca", {}), *(("local", {"shrinkage": a}) for a in (0.8, 0.98))]
    if uses_labels:
        parameters = itertools.product((0.1, 0.9), (0.3, 1.0), (0.0, 0.3))
        names = "shrinkage", "weighting", "total_share"
        starts += [(start, dict(zip(names, each, strict=True))) for each in parameters for start in ("lda", "nda")]
    head = HeadConfig(embedding_dim=6).for_features(20).model_dump()
    choices = [chosen_head.ChosenHead(**{**head, "start": start, **given}) for start, given in starts]
    together, apart = (held_out.HeldOutFolds(dataset, uses_labels) for _ in range(2))
    told = []
    together.find([None, *choices, choices[0]], advance=told.append)
    assert sum(told) == 1 + len(choices)
    together._find = None  # nothing is left to look at
    for choice in (None, *choices):
        for found, expected in zip(together.found(choice), apart.found(choice), strict=True):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
