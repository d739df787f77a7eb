"""Guards that refuse negatives before the pick, and a second ranking."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from tests.stages.hard_top_k.test_by_label import ByKeys, arguments, chosen, make_case, oracle, pick
from xbm_keras import HardTopK

GUARDS = [
    {"max_score": 0.4},
    {"absolute_margin": 0.1},
    {"relative_margin": 0.3},
    {"max_score": 0.5, "absolute_margin": 0.0, "relative_margin": 0.1},
]


def unit_case(seed):
    case = make_case(num_anchors=6, num_rows=40, seed=seed)
    random = np.random.default_rng(seed)
    for name in ("anchor_keys", "row_keys"):
        keys = random.normal(size=case[name].shape)
        case[name] = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype("float32")
    case["labels"][0] = 7  # a class that no row has: no margin
    case["ids"][1] = case["row_ids"][np.argmin(case["row_keys"] @ case["anchor_keys"][1])]
    case["row_labels"][case["row_ids"] == case["ids"][1]] = case["labels"][1]  # its hardest positive would be itself
    return case


def ceiling_of(case, anchor, max_score=None, absolute_margin=None, relative_margin=None):
    scores = case["anchor_keys"][anchor] @ case["row_keys"].T
    positives = oracle(case, anchor, positive=True, order="lowest", count=1)
    ceilings = [np.inf if max_score is None else max_score]
    for row in positives:
        ceilings += [scores[row] - (absolute_margin or 0)] if absolute_margin is not None else []
        ceilings += [scores[row] - relative_margin * abs(scores[row])] if relative_margin is not None else []
    return min(ceilings)


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: "-".join(guard))
def test_guards_refuse_negatives_before_the_pick(guard, mode):
    """pitfalls.md: top-k negatives are often mislabelled. Refused ones are replaced by the next best."""
    for seed in range(1 if mode == "xla" else 3):
        case = unit_case(seed)
        picks = pick(HardTopK(5, 2, "hardest", **guard), case, mode)
        everything = pick(HardTopK("all", 2, "hardest", **guard), case, mode)
        for anchor in range(6):
            scores = case["anchor_keys"][anchor] @ case["row_keys"].T
            by_score = oracle(case, anchor, positive=False, order="highest", count=40)
            allowed = [row for row in by_score if scores[row] <= ceiling_of(case, anchor, **guard)]
            assert chosen(picks, anchor, positive=False) == allowed[:5]
            assert chosen(everything, anchor, positive=False) == sorted(allowed)
            expected = oracle(case, anchor, positive=True, order="lowest", count=2)
            assert chosen(picks, anchor, positive=True) == expected  # positives are never refused


@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_guards_look_at_the_features_whatever_the_keys_are(mode):
    case, other = unit_case(0), unit_case(5)
    features, rows, *rest = arguments(case)
    top_k = HardTopK(5, 0, max_score=0.3)

    def call(anchor_keys, row_keys):
        top_k.mining = ByKeys(anchor_keys, lambda start, width: tf.slice(row_keys, [start, 0], [width, -1]))
        return top_k(features, rows, *rest)

    picks = in_mode(call, mode)(tf.constant(other["anchor_keys"]), tf.constant(other["row_keys"]))
    by_key = {**case, "anchor_keys": other["anchor_keys"], "row_keys": other["row_keys"]}
    for anchor in range(6):
        scores = case["anchor_keys"][anchor] @ case["row_keys"].T
        by_score = oracle(by_key, anchor, positive=False, order="highest", count=40)
        assert chosen(picks, anchor, positive=False) == [row for row in by_score if scores[row] <= 0.3][:5]


@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_rerank_picks_by_feature_score_among_the_best_by_key(mode):
    case, keys = unit_case(1), unit_case(6)
    features, rows, *rest = arguments(case)
    top_k = HardTopK(3, 2, "hardest", max_score=0.9)

    def call(anchor_keys, row_keys):
        top_k.mining = ByKeys(anchor_keys, lambda start, width: tf.slice(row_keys, [start, 0], [width, -1]), rerank=4)
        return top_k(features, rows, *rest)

    picks = in_mode(call, mode)(tf.constant(keys["anchor_keys"]), tf.constant(keys["row_keys"]))
    by_key = {**case, "anchor_keys": keys["anchor_keys"], "row_keys": keys["row_keys"]}
    for anchor in range(6):
        scores = case["anchor_keys"][anchor] @ case["row_keys"].T
        wide = oracle(by_key, anchor, positive=False, order="highest", count=12)
        wide = [row for row in wide if scores[row] <= 0.9]
        assert chosen(picks, anchor, positive=False) == sorted(wide, key=lambda row: -scores[row])[:3]
        wide = oracle(by_key, anchor, positive=True, order="lowest", count=8)
        assert chosen(picks, anchor, positive=True) == sorted(wide, key=lambda row: scores[row])[:2]
