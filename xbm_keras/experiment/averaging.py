"""Embeddings averaged over views of pictures, as an exported model gives them, by features from the cache.

Letters: n pictures, E embedding width.
"""

from collections.abc import Callable, Sequence

import numpy as np

from xbm_keras.config.schema import Config
from xbm_keras.data.sources import Source
from xbm_keras.data.unit_rows import FeatureRows
from xbm_keras.data.views import Average, averaged
from xbm_keras.feature_cache.cache import compute_features
from xbm_keras.geometry import unit_rows
from xbm_keras.stages.backbone.frozen import Backbone

Embed = Callable[[FeatureRows, np.ndarray], np.ndarray]
"""Of features, and positions [n] in them, embeddings [n, E] of unit length."""


def with_views(
    plain: np.ndarray,
    source: Source,
    positions: np.ndarray,
    average: Sequence[Average],
    config: Config,
    backbone: Backbone,
    embed: Embed,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Mean embeddings of pictures and of their views; the network sees each view once, ever.

    Args:
        plain: embeddings of the pictures themselves, [n, E].
        source: of them.
        positions: theirs, [n], increasing.
        average: which views.
        config: of the cache.
        backbone: the network.
        embed: features of views.

    Returns:
        Embeddings [m, E]; the positions [m] of their pictures, which are all but those that could not be read again;
        and why these could not.
    """
    reasons: dict[int, str] = {}
    if not len(positions):
        return plain, positions, reasons
    total, is_there = plain.copy(), np.ones(len(positions), bool)  # a sum: a list would hold all views at once
    for view in averaged(source, positions, average):
        cached = compute_features(
            view, backbone, config.cache.dir, title=f"features, {view.name}", **config.cache.arguments()
        )
        has_one = np.zeros(len(positions), bool)
        has_one[cached.positions] = True
        is_there &= has_one
        total[has_one] += embed(cached.rows, np.arange(len(cached.rows)))
        reasons |= {int(i): cached.skipped[str(source.items.keys[i])] for i in positions[~has_one]}
    return unit_rows(total[is_there]), positions[is_there], reasons
