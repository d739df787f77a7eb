"""Time and memory of the stages of a run."""

import contextlib
import dataclasses
import enum
import logging
import sys
import time
from collections.abc import Sequence

import tensorflow as tf

with contextlib.suppress(ImportError):
    import resource  # not on Windows

log = logging.getLogger("xbm_keras")


class Stage(enum.StrEnum):
    """What a run does, in its order."""

    FEATURES = "features"
    VIEWS = "views of training pictures"
    PARTS = "parts of the network, by what is held out"
    CHOICE = "start and epoch, by what is held out"
    HELD_OUT = "scores of what is held out"
    REFIT = "training on all"
    TEST = "test"
    SAVING = "saving"
    REPORT = "report"


@dataclasses.dataclass
class Cost:
    """Of one stage."""

    stage: str
    seconds: float
    peak_mb: float | None
    """The most memory that the process held, from its start to the end of the stage."""
    gpu_peak_mb: float | None
    """The most that TensorFlow held on the first GPU during the stage."""


class Costs:
    """A stopwatch: `begin` ends the stage before, and says where a run is.

    Args:
        planned: all stages that there will be, in their order; those that are not are begun in silence.

    Example:
        >>> costs = Costs()
        >>> costs.begin(Stage.FEATURES)
        >>> costs.begin(Stage.TEST)
        >>> [str(cost.stage) for cost in costs.end()]
        ['features', 'test']
    """

    def __init__(self, planned: Sequence[Stage] = ()):
        self.planned = planned
        self.finished: list[Cost] = []
        self._stage: Stage | None = None

    def begin(self, stage: Stage) -> None:
        """A stage begins."""
        self.end()
        if stage in self.planned:
            log.info("%d of %d: %s", 1 + self.planned.index(stage), len(self.planned), stage)
        self._stage, self._start = stage, time.perf_counter()
        if tf.config.list_physical_devices("GPU"):
            tf.config.experimental.reset_memory_stats("GPU:0")

    def end(self) -> list[Cost]:
        """The stage ends; the costs of all so far."""
        if self._stage is not None:
            seconds = time.perf_counter() - self._start
            self.finished.append(Cost(self._stage, seconds, _peak_mb(), _gpu_peak_mb()))
            self._stage = None
        return self.finished


def _peak_mb() -> float | None:
    if "resource" not in globals():
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _gpu_peak_mb() -> float | None:
    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
