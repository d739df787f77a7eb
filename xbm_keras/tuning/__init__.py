"""Search for the best memory size, k, loss and head, on features that are computed once, with KerasTuner.

- search: a search in a folder; tuner, local_workers: its loop, in one process or several
- hypermodel, pair_hypermodel, space: what a trial is, and which keys vary
- oracles, gaussian_process: which trial comes next
- page, query_scores: search.html, and how sure its verdict is
"""

from xbm_keras.tuning.hypermodel import HeadHyperModel, load_data
from xbm_keras.tuning.local_workers import local_workers
from xbm_keras.tuning.pair_hypermodel import PairHyperModel, load_pair_data
from xbm_keras.tuning.search import HeadSearch, SearchError
from xbm_keras.tuning.tuner import HeadTuner, take_role, work

__all__ = [
    "HeadHyperModel",
    "HeadSearch",
    "HeadTuner",
    "PairHyperModel",
    "SearchError",
    "load_data",
    "load_pair_data",
    "local_workers",
    "take_role",
    "work",
]
