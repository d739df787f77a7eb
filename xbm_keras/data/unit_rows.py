"""Some items' features, as they are or as unit vectors, read when they are indexed."""

from typing import Protocol

import numpy as np

from xbm_keras.geometry import signed_power, unit_rows


class FeatureRows(Protocol):
    """Features of any length, read when they are indexed: an array, memory-mapped or not, or what acts as one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, D]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index, /) -> np.ndarray: ...


class ChosenRows:
    """Some rows [n, D] of a feature array, read when they are indexed, as if they were an array."""

    def __init__(self, features: np.ndarray, positions: np.ndarray):
        self.features, self.positions = features, positions
        self.shape, self.dtype = (len(positions), features.shape[1]), features.dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        return np.asarray(self.features[self.positions[index]])

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype, copy=False)


class ChosenColumns:
    """Some columns [n, d] of a feature array, read when they are indexed, as if they were an array."""

    def __init__(self, features: FeatureRows, columns: np.ndarray):
        self.features, self.columns = features, columns
        self.shape = (len(features), len(columns))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        return np.asarray(self.features[index])[..., self.columns]

    def __array__(self, dtype=None, copy=None):
        rows = self[:]
        return rows.astype(dtype or rows.dtype, copy=False)


class UnitRows:
    """Rows of a feature array that have unit length, float32 [n, D], as if they were an array.

    The type that promises unit length, which `FeatureRows` does not.

    Args:
        features: [N, D] of any float dtype.
        positions: [n] which rows, in which order; None is all.
        power: of each feature, which keeps its sign, before the row is made of unit length; 1 leaves them as they are.
    """

    def __init__(self, features: FeatureRows, positions: np.ndarray | None = None, power: float = 1.0):
        self.features = features
        self.positions = np.arange(len(features)) if positions is None else positions
        self.power = power
        self.shape = (len(self.positions), features.shape[1])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        rows = np.asarray(self.features[self.positions[index]], np.float32)
        return unit_rows(signed_power(rows, self.power))

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or np.float32, copy=False)
