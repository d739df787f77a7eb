"""Writes into rows of variables: in place, on each replica, and so that a step can take them back.

Their cost does not grow with the variables.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

Journal = list[tuple[keras.Variable, tf.Tensor | None, tf.Tensor]]
"""What was written over, in order: the variable, which of its rows, [n] (None is all of it), and what was there."""

_open = threading.local()  # MirroredStrategy traces each replica in a thread of its own


def is_under_xla() -> bool:
    """Whether this is traced into a function that XLA compiles, which has no kernel for some ops."""
    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


@contextlib.contextmanager
def journal() -> Iterator[Journal]:
    """A step that may be taken back: all writes of this thread within it are noted, for `put_back`."""
    with _noting([]) as noted:
        yield noted


def without_journal() -> contextlib.AbstractContextManager:
    """Writes within it are not noted: for a loop, from whose body no tensor can be kept."""
    return _noting(None)


@contextlib.contextmanager
def _noting(noted):
    before, _open.journal = getattr(_open, "journal", None), noted
    try:
        yield noted
    finally:
        _open.journal = before


def write_rows(variable: keras.Variable, at: tf.Tensor, rows: tf.Tensor, only_if: tf.Tensor | None = None) -> None:
    """Write rows in place: in a step into the replica's own copy of the variable, elsewhere into all copies.

    Args:
        variable: [M, ...].
        at: [n] integer, which of its rows.
        rows: [n, ...]; they are cast to the variable's dtype.
        only_if: a scalar bool; False leaves all as it is.
    """
    noted = getattr(_open, "journal", None)
    rows = tf.cast(rows, variable.dtype)
    if noted is not None or only_if is not None:
        before = tf.gather(variable.value, at)
        if noted is not None:
            noted.append((variable, at, before))
        if only_if is not None:
            rows = tf.where(only_if, rows, before)
    for copy in _copies(variable.value):
        # A resource scatter is the one update whose cost does not grow with M outside XLA. By handle, because a
        # variable of MirroredStrategy has no such method.
        tf.raw_ops.ResourceScatterNdUpdate(ref=copy.handle, indices=at[:, None], updates=rows)
        if not is_under_xla():
            # The scatter leaves the variable in copy-on-read mode: without this each read copies all M rows. XLA has no
            # kernel for this op, and no such mode.
            tf.raw_ops.DisableCopyOnRead(resource=copy.handle)


def write_whole(variable: keras.Variable, value: tf.Tensor) -> None:
    """Assign a small variable, such as a counter."""
    noted = getattr(_open, "journal", None)
    if noted is not None:
        noted.append((variable, None, tf.identity(variable.value)))
    variable.value.assign(value)


def put_back(noted: Journal, is_wanted: tf.Tensor) -> None:
    """Write back what was written over, the newest first.

    Args:
        noted: by `journal`, which is closed.
        is_wanted: a scalar bool; False leaves all as it is.
    """
    backwards = noted[::-1]
    if is_under_xla():
        for variable, at, before in backwards:
            if at is None:
                variable.value.assign(tf.where(is_wanted, before, variable.value))
            else:
                write_rows(variable, at, before, only_if=is_wanted)
        return

    def write():
        for variable, at, before in backwards:
            if at is not None:
                write_rows(variable, at, before)
                continue
            for copy in _copies(variable.value):  # by handle: replicas cannot meet for an assign in a branch
                tf.raw_ops.AssignVariableOp(resource=copy.handle, value=before)

    # Not run at all as a rule: a write copies the variable where somebody still holds what was read of it.
    tf.cond(is_wanted, write, lambda: None)


def _copies(variable: tf.Variable) -> Sequence[tf.Variable]:
    """Of a variable of several replicas all copies, but in a replica's step itself, whose handle is its own copy's."""
    is_in_step = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    if is_in_step or not isinstance(variable, tf.distribute.DistributedValues):
        return [variable]
    return variable.distribute_strategy.experimental_local_results(variable)
