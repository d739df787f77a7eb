"""What the score of a trial is a mean of: by it a search says how sure a difference is."""

import dataclasses
import json

import numpy as np

from xbm_keras.evaluation.intervals import bootstrap_interval

DIGITS = 6


@dataclasses.dataclass(frozen=True)
class QueryScores:
    """The score of each validation query; they stand in the same order in all trials of a search."""

    values: np.ndarray
    """[n]."""
    units: np.ndarray
    """[n], what an interval draws: the class of each query, or its number where it is drawn by itself."""

    def to_text(self) -> str:
        """JSON, as it is kept in a file and goes from a worker to its chief."""
        values = np.round(self.values.astype(np.float64), DIGITS)
        return json.dumps({"values": values.tolist(), "units": self.units.tolist()})

    @classmethod
    def from_text(cls, text: str) -> "QueryScores":
        """What `to_text` wrote."""
        found = json.loads(text)
        return cls(np.array(found["values"]), np.array(found["units"]))

    def interval_above(self, other: "QueryScores") -> tuple[float, float] | None:
        """The 95 % interval of the mean difference, query by query, by bootstrap over the units.

        None where the queries are not the same ones, as after a change of the data.
        """
        if not np.array_equal(self.units, other.units):
            return None
        return bootstrap_interval(self.values - other.values, self.units)
