"""The interval of how far a trial is above the config as it is."""

import numpy as np
import pytest

from xbm_keras.evaluation.intervals import bootstrap_interval
from xbm_keras.tuning.query_scores import QueryScores


def test_what_is_kept_gives_the_interval_over_classes():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(20), 10)
    default = rng.uniform(size=200).astype(np.float32)
    best = default + 0.1 + np.repeat(rng.normal(size=20), 10) * 0.1  # what differs, differs class by class
    ends = QueryScores.from_text(QueryScores(best, units).to_text()).interval_above(
        QueryScores.from_text(QueryScores(default, units).to_text())
    )
    assert ends == pytest.approx(bootstrap_interval(best - default, units), abs=1e-5)
    narrow = bootstrap_interval(best - default)
    assert ends[1] - ends[0] > 2 * (narrow[1] - narrow[0])


def test_other_queries_give_no_interval():
    here = QueryScores(np.ones(4), np.array([0, 0, 1, 1]))
    assert here.interval_above(QueryScores(np.ones(3), np.array([0, 0, 1]))) is None
    assert here.interval_above(QueryScores(np.ones(4), np.array([0, 0, 2, 2]))) is None
