"""Undoing of writes into rows of variables, at a cost that does not grow with the variables."""

import keras
import tensorflow as tf

from xbm_keras.stages.circular_memory import replicas

Overwritten = list[tuple[keras.Variable, tf.Tensor | None, tf.Tensor]]
"""What was written over, in order: the variable, which of its rows, [n] (None is all of it), and what was there."""


def put_back(overwritten: Overwritten, is_wanted: tf.Tensor, *, jit_compile: bool = False) -> None:
    """Write back what was overwritten, the newest first.

    Args:
        overwritten: by whom.
        is_wanted: a scalar bool; False leaves all as it is.
        jit_compile: say True where this is traced into an XLA-compiled function.
    """
    backwards = overwritten[::-1]
    for variable, at, before in backwards:
        if at is None:
            variable.value.assign(tf.where(is_wanted, before, variable.value))
    of_rows = [(variable, at, before) for variable, at, before in backwards if at is not None]

    def write():
        for variable, at, before in of_rows:
            replicas.write_rows(variable.value, at, before, jit_compile=jit_compile)

    if not jit_compile:
        # Not run at all as a rule: a write copies the variable where somebody still holds what was read of it.
        tf.cond(is_wanted, write, lambda: None)
        return
    of_rows = [
        (variable, at, tf.where(is_wanted, before, tf.gather(variable.value, at))) for variable, at, before in of_rows
    ]
    write()
