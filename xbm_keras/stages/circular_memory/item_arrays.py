"""The arrays that items come in: features, labels, sample ids, weights. What is taken, and what is refused."""

import numpy as np
import tensorflow as tf

MAX_REPORTED_IDS = 8


def check_features(shape: tf.TensorShape, width: int | None = None) -> None:
    """Raises ValueError for features of another shape than [B, D], or of another width D than the one given."""
    shape = tf.TensorShape(shape)
    if shape.rank not in (2, None):
        raise ValueError(
            f"Received features of shape {shape}; expected [B, D], one vector for each item. Pool the network's output "
            "to one vector for each item, and give batches of items."
        )
    found = shape[-1] if shape.rank else None
    if width is None and found is None:
        raise ValueError(
            f"Received features of shape {shape}; expected [B, D] with a known width D. Set it by "
            "tf.ensure_shape(features, (None, D)), or build the model first."
        )
    if None not in (width, found) and width != found:
        raise ValueError(
            f"Received features of width {found}; this memory was built for width {width}. Use one memory per backbone."
        )


def read_labels(labels, batch_size: tf.Tensor | int) -> tf.Tensor:
    """Labels as int64 [B].

    Args:
        labels: integer or bool, [B] or [B, 1].
        batch_size: B.

    Raises:
        ValueError: for another dtype or shape.
    """
    expected = "integer labels, [B] or [B, 1]"
    labels = _tensor("labels", labels, expected)
    if labels.shape.rank and labels.shape.rank > 1 and labels.shape[-1] != 1:
        raise ValueError(
            f"Received labels of shape {labels.shape}; expected {expected}. Of one-hot labels give "
            "np.argmax(labels, axis=1)."
        )
    if not (labels.dtype.is_integer or labels.dtype.is_bool):
        mend = "Cast them to int64, if each of them is a whole number."
        if labels.dtype == tf.string:
            mend = "Number the classes: np.unique(labels, return_inverse=True)[1]."
        raise ValueError(f"Received labels of dtype {labels.dtype.name}; expected {expected}. {mend}")
    return tf.cast(_vector("labels", labels, batch_size, expected), tf.int64)


def read_relevant(relevant, batch_size: tf.Tensor | int) -> tf.Tensor:
    """Ids of the documents that answer each query, int64 [B, P].

    Args:
        relevant: integer, [B, P], where -1 fills up; or [B], one for each query.
        batch_size: B.

    Raises:
        ValueError: for another dtype or shape.
    """
    expected = "integer ids of the documents that answer each query, [B, P], and -1 where there are fewer"
    relevant = _tensor("labels", relevant, expected)
    if not relevant.dtype.is_integer or relevant.shape.rank not in (1, 2):
        raise ValueError(
            f"Received labels of dtype {relevant.dtype.name} and shape {relevant.shape}; expected {expected}. Number "
            "the documents from 0."
        )
    return tf.cast(tf.reshape(relevant, [batch_size, relevant.shape[1] if relevant.shape.rank == 2 else 1]), tf.int64)


def read_sample_ids(sample_ids, batch_size: tf.Tensor | int) -> tf.Tensor:
    """Sample ids as int64 [B].

    Args:
        sample_ids: integer, [B] or [B, 1].
        batch_size: B.

    Raises:
        ValueError: for another dtype or shape.
    """
    mend = (
        ": other dtypes lose digits, and items that share an id hide each other in the memory. Give "
        "np.arange(num_items), which is int64."
    )
    return _integers("sample_id", sample_ids, batch_size, "integer ids, [B] or [B, 1]", mend)


def read_slot_numbers(slots) -> tf.Tensor:
    """Numbers of memory slots as int64 [B].

    Args:
        slots: integer, [B] or [B, 1].

    Raises:
        ValueError: for another dtype or shape.
    """
    mend = ". Give np.arange(memory_size), or a part."
    return _integers("slot", slots, None, "integer slots of the memory, [B] or [B, 1]", mend)


def read_weights(weights, batch_size: tf.Tensor | int) -> tf.Tensor:
    """Weights of the anchors, float32 [B].

    Args:
        weights: numbers, [B] or [B, 1].
        batch_size: B.

    Raises:
        ValueError: for another dtype or shape.
    """
    expected = "one number for each item, [B] or [B, 1]"
    weights = _tensor("sample_weight", weights, expected)
    if weights.dtype == tf.string or weights.dtype.is_complex:
        raise ValueError(
            f"Received sample_weight of dtype {weights.dtype.name}; expected {expected}. Cast it to float32."
        )
    return tf.cast(_vector("sample_weight", weights, batch_size, expected), tf.float32)


def _integers(name: str, values, batch_size: tf.Tensor | int | None, expected: str, mend: str) -> tf.Tensor:
    """The values as int64 [B]; B is what they have where it is None."""
    tensor = _tensor(name, values, expected)
    if not tensor.dtype.is_integer:
        raise ValueError(f"Received {name} of dtype {tensor.dtype.name}; expected {expected}{mend}")
    return tf.cast(_vector(name, tensor, batch_size, expected), tf.int64)


def _tensor(name: str, value, expected: str) -> tf.Tensor:
    try:
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Received {name} of type {type(value).__name__}; expected {expected}. Give a single array."
        ) from error


def _vector(name: str, tensor: tf.Tensor, batch_size: tf.Tensor | int | None, expected: str) -> tf.Tensor:
    """The tensor as [B]."""
    shape, static_size = tensor.shape, None if batch_size is None else tf.get_static_value(batch_size)
    is_column = shape.rank == 2 and shape[1] in (1, None)
    is_other_size = shape.rank and None not in (shape[0], static_size) and shape[0] != static_size
    if not (shape.rank in (1, None) or is_column) or is_other_size:
        size = "B" if static_size is None else static_size
        raise ValueError(
            f"Received {name} of shape {shape}; expected {expected}, with B = {size}. Give one number for each item."
        )
    return tf.reshape(tensor, [-1 if batch_size is None else batch_size])


def non_finite_message(num_items: int, sample_ids: np.ndarray) -> str:
    """The error text for items whose features are NaN or infinite, with the ids of the first of them."""
    shown = ", ".join(map(str, sample_ids[:MAX_REPORTED_IDS])) + (", ..." if num_items > MAX_REPORTED_IDS else "")
    return (
        f"Received NaN or infinite features for {num_items} item(s), with sample id {shown}; expected finite "
        "numbers. Remove or repair these items; they were not written to the memory."
    )
