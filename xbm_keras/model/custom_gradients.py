"""Custom gradients, which TensorFlow registers for the life of the process: here for that of the graph."""

import contextlib
import weakref
from collections.abc import Callable, Iterator

import tensorflow as tf
from tensorflow.python.framework import ops


@contextlib.contextmanager
def freed_with_the_graph() -> Iterator[None]:
    """What is traced inside can be freed once its model is gone.

    TensorFlow registers each `tf.custom_gradient` of a graph by a name, and so keeps the graph and the variables in it.
    A training step always has one: Keras' optimizers sum gradients over replicas, be there one, in such a function.
    """
    registered = ops.gradient_registry._registry  # there is no public way to take something out
    known = set(registered)
    yield
    graph = tf.compat.v1.get_default_graph()
    for name in set(registered) - known:
        gradient = registered[name]["type"]
        graph.custom_gradients = [*getattr(graph, "custom_gradients", []), gradient]
        registered[name]["type"] = _called_while_it_lives(gradient)
        weakref.finalize(gradient, registered.pop, name)


def _called_while_it_lives(gradient: Callable) -> Callable:
    reference = weakref.ref(gradient)
    return lambda *arguments: reference()(*arguments)  # type: ignore[misc]
