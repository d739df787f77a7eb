"""search.html: what its reader is told."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from xbm_keras.report.page import render
from xbm_keras.tuning.page import Axis, Findings, search_page

SIZES, COUNTS = [0, 64, 256], [4, 16]
AXES = {
    "memory.memory_size": Axis(SIZES),
    "top_k.num_negatives": Axis(COUNTS),
    "training.learning_rate": Axis(None, is_log=True),
    "loss.temperature": Axis(None),
}
DEFAULT = {
    "memory.memory_size": 65_536,
    "top_k.num_negatives": 4,
    "training.learning_rate": 1e-3,
    "loss.temperature": 0.1,
    "val_map_at_r": 0.5,
}


def findings(count, default=DEFAULT, test=None):
    """Trials whose score grows with the memory, and with nothing else; the last one failed."""
    rng = np.random.default_rng(0)
    sizes = rng.choice(SIZES, count)
    scores = 0.4 + 0.1 * np.array([SIZES.index(size) for size in sizes]) + rng.uniform(0, 0.001, count)
    trials = pd.DataFrame(
        {
            "trial": [f"{i:04d}" for i in range(count)],
            "status": ["completed"] * (count - 1) + ["failed"],
            "val_map_at_r": np.where(np.arange(count) < count - 1, scores, np.nan),
            "memory.memory_size": sizes,
            "top_k.num_negatives": rng.choice(COUNTS, count),
            "training.learning_rate": 10.0 ** rng.uniform(-5, -2, count),
            "loss.temperature": np.where(rng.uniform(size=count) < 0.5, np.nan, 0.25),
            "reason": [""] * (count - 1) + ["ConfigError: <no>"],
        }
    )
    return Findings(trials, AXES, default, test or {}, "python train.py --config x/best.yaml", {"tuner": "random"})


def test_the_verdict_says_which_memory_size_and_k():
    found = findings(40)
    best = found.finished.iloc[0]
    page = search_page(found, "Search")
    assert best["memory.memory_size"] == 256
    assert page.verdict.tone == "good"
    assert page.verdict.text == (
        f"Use memory size 256, negatives per anchor {best['top_k.num_negatives']}: validation MAP@R "
        f"{best.val_map_at_r:.4f} instead of 0.5000 (trial {best.trial})."
    )
    html = render(page)
    assert "ConfigError: &lt;no&gt;" in html
    assert f".{best.val_map_at_r:.3f}".removeprefix(".0") in html  # in the heat map


def test_a_default_that_no_trial_beats_is_kept():
    page = search_page(findings(20, {**DEFAULT, "val_map_at_r": 0.9}), "Search")
    assert page.verdict.text == "Keep the config as it is: no trial is better than its 0.9000."


def test_where_the_closed_form_is_best_memory_and_k_are_not_advised():
    found = findings(40)
    found.trials["epoch"] = 0.0
    best = found.finished.iloc[0]
    assert search_page(found, "Search").verdict.text == (
        f"Use trial {best.trial}: validation MAP@R {best.val_map_at_r:.4f} instead of 0.5000. Its best epoch is 0, the "
        "closed form itself: any memory size and k will do."
    )


@pytest.mark.parametrize("epoch", [0.0, 3.0])
def test_use_is_said_where_the_interval_of_the_difference_excludes_zero(epoch):
    found = findings(40)
    found.trials["epoch"] = epoch
    best = found.finished.iloc[0]
    scores = f"validation MAP@R {best.val_map_at_r:.4f} instead of 0.5000, 95 % interval of the difference over classes"
    surely, perhaps = (
        search_page(dataclasses.replace(found, interval=interval), "Search").verdict
        for interval in ((0.0312, 0.1689), (-0.0312, 0.2313))
    )
    assert (surely.tone, perhaps.tone) == ("good", "plain")
    assert surely.text.startswith("Use trial" if epoch == 0 else "Use memory size 256")
    assert f"{scores} +0.0312 to +0.1689" in surely.text
    assert perhaps.text.startswith(
        f"Trial {best.trial} is not surely better than the config as it is: {scores} -0.0312 to +0.2313."
    )
    for each in (surely, perhaps):
        assert ("Its best epoch is 0" in each.text) == (epoch == 0)


def test_the_interval_is_over_what_is_scored():
    found = findings(40)
    trials = found.trials.rename(columns={"val_map_at_r": "val_ndcg_at_10"})
    default = DEFAULT | {"val_ndcg_at_10": 0.5}
    found = dataclasses.replace(found, trials=trials, default=default, score="val_ndcg_at_10", interval=(0.01, 0.02))
    assert "of the difference over queries +0.0100 to +0.0200" in search_page(found, "Search").verdict.text


def test_the_numbers_of_a_log_axis_can_be_read():
    html = render(search_page(findings(40), "Search"))
    assert "mathdefault" not in html
    assert "1e-05" in html
    assert "0.001" in html


def test_keys_that_neither_config_has_are_left_out():
    found = findings(40, {**DEFAULT, "loss.temperature": None})
    found.trials["loss.temperature"] = np.nan
    (section,) = [s for s in search_page(found, "Search").sections if s.title == "Default and best"]
    assert "loss.temperature" not in [row[0] for row in section.blocks[0].rows]


def test_a_test_score_is_that_of_the_best_trial_or_none():
    """Where no trial is better than the default, what is tested as the best is the default."""
    for default, shown in ((0.5, "0.4000"), (0.99, "")):
        found = findings(40, default=DEFAULT | {"val_map_at_r": default}, test={"MAP": {"default": 0.6, "best": 0.4}})
        (section,) = [s for s in search_page(found, "Search").sections if s.title == "Default and best"]
        (row,) = [row for row in section.blocks[0].rows if row[0] == "test MAP"]
        assert (row[1], str(getattr(row[2], "text", row[2]))) == ("0.6000", shown)
        assert ("best.yaml is the default" in section.blocks[1].text) == (not shown)


def test_what_mattered_is_the_memory():
    (section,) = [s for s in search_page(findings(40), "Search").sections if s.title == "What mattered"]
    first, share = section.blocks[0].alt.removeprefix("Importance: ").split(",")[0].split(" ")
    assert first == "memory.memory_size"
    assert int(share.rstrip("%")) > 80


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_page_of_few_trials(count):
    page = search_page(findings(count, test={"MAP@R, leave-one-out": {"default": 0.5, "best": 0.4}}), "Search")
    assert render(page)
    assert page.verdict.text.startswith("No trial has finished." if count == 1 else ("Use", "Keep"))
    assert "What mattered" not in [section.title for section in page.sections]
