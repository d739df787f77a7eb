"""What an export wrote, loaded by the runtime that it is for and compared with the model, before it gets its name."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np

TOLERANCE = 1e-3  # of components of unit vectors: runtimes add in another order


@contextlib.contextmanager
def in_float32(*layers: keras.Layer | None) -> Iterator[None]:
    """Layers that compute in float32, whatever their dtype policy is: few runtimes know mixed precision.

    Their weights are float32 under a mixed policy, too, so nothing is lost.
    """
    every = [each for layer in layers if layer is not None for each in layer._flatten_layers()]
    policies = [(each, each.dtype_policy) for each in every if each.compute_dtype in ("float16", "bfloat16")]
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def require_same(what: str, run: Callable[[], Mapping[str, np.ndarray]], expected: Mapping[str, np.ndarray]) -> None:
    """Compare what a runtime computes with what the model computes from the same inputs.

    Args:
        what: was exported, for the error.
        run: loads it and gives its outputs.
        expected: some of the outputs by name, [N, E] each.

    Raises:
        ValueError: where the runtime cannot load or run it, or gives something else.
    """
    try:
        found = {name: np.asarray(values) for name, values in run().items()}
    except Exception as error:  # each runtime has its own kinds, and all of them mean that the file is of no use
        raise ValueError(
            f"Received a model whose export as {what} does not run: {type(error).__name__}: {error}\nExpected a "
            "network whose operations this runtime has. Nothing was written; export another form of it."
        ) from error
    for name, values in expected.items():
        values = np.asarray(values)
        is_same_form = name in found and found[name].shape == values.shape
        difference = np.abs(found[name].astype(np.float64) - values).max(initial=0) if is_same_form else np.inf
        if not difference <= TOLERANCE:  # NaN is not either
            raise ValueError(
                f"Received a model whose export as {what} gives other {name}, which differ by {difference:.3g}; "
                f"expected at most {TOLERANCE}. Nothing was written; export another form of it."
            )
