"""A head with all that a run may choose for it, and the closed form that it starts from."""

from typing import Literal

import numpy as np
import pydantic

from xbm_keras import progress
from xbm_keras.config import schema
from xbm_keras.config.yaml_files import blaming_config
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.stages.head.starts import ClosedForms, Start

PARAMETERS = {
    "whiten": ("shrinkage",),
    "local": ("shrinkage",),
    "lda": ("total_share", "shrinkage", "weighting"),
    "nda": ("total_share", "shrinkage", "weighting"),
}
TRIED = {  # where one is auto
    "shrinkage": (0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.99),
    "weighting": (0.3, 1.0),
    "total_share": (0.0, 0.3),
}
POWERS = (1.0, 0.5)  # of the features before the head, that are tried


class HeadChoice(schema.HeadConfig):
    """A head with all that a run chooses for it, which no config says."""

    weighting: float | Literal["auto"] = "auto"
    """For lda and nda: a direction whose variance between classes is v times that inside them is scaled by the root of
    v / (v + weighting)."""
    total_share: float | Literal["auto"] = "auto"
    """For lda and nda: of the total covariance in the within-class one."""
    power: float | Literal["auto"] = "auto"
    """Of each feature before the FC layer, which keeps its sign."""


class ChosenHead(HeadChoice):
    """A head of which nothing is left to choose."""

    weighting: float = TRIED["weighting"][0]
    total_share: float = TRIED["total_share"][0]
    power: float = POWERS[0]
    tried: dict[str, dict[str, float]] = pydantic.Field(default_factory=dict)
    """By start and shrinkage MAP@R of held-out classes, the best over the rest."""


def make_start(config: ChosenHead, closed_forms: ClosedForms) -> Start:
    """The closed form that the config names."""
    with blaming_config():
        parameters = {name: getattr(config, name) for name in PARAMETERS.get(config.start, ())}
        return getattr(closed_forms, config.start)(config.embedding_dim, **parameters)


def closed_forms_of(
    dataset: Dataset, positions: np.ndarray, power: float = 1.0, rank: int | None = None, is_draft: bool = False
) -> ClosedForms:
    """One pass over the features of these items, raised to the head's power."""
    with progress.watch(UnitRows(dataset.features, positions, power), "closed form") as rows:
        return ClosedForms(rows, dataset.labels[positions], rank, is_draft)
