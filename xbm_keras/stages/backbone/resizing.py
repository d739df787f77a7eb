"""Antialiased resizing of pictures by two products: the operation of TensorFlow runs neither on a GPU nor in XLA."""

import tensorflow as tf


def resize_by_products(images: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """`tf.image.resize(images, image_size, antialias=True)` of pictures, to rounding.

    Args:
        images: [..., H, W, C], of any dtype.
        image_size: (height, width).

    Returns:
        [..., height, width, C] float32.

    Example:
        >>> resize_by_products(tf.constant([[[0.0], [4.0]]]), (1, 1)).numpy().tolist()
        [[[2.0]]]
    """
    height, width = image_size
    rows, columns = tf.shape(images)[-3], tf.shape(images)[-2]
    images = tf.einsum("ij,...jwc->...iwc", interpolation(rows, height), tf.cast(images, tf.float32))
    return tf.einsum("ij,...hjc->...hic", interpolation(columns, width), images)


def interpolation(num_in: tf.Tensor | int, num_out: int) -> tf.Tensor:
    """Matrix [num_out, num_in] float32 that resizes a line of pixels: a triangle around each pixel of the result.

    Where pixels become fewer it is as wide as two of the result, so that each counts. In the same steps of float32
    as TensorFlow's `ScaleAndTranslate`.
    """
    size = tf.cast(num_in, tf.float32)
    step = 1.0 / (num_out / size)  # pixels of the source to one of the result
    centres = (tf.range(num_out, dtype=tf.float32) + 0.5) * step
    distances = tf.abs(tf.range(size, dtype=tf.float32)[None, :] + 0.5 - centres[:, None])
    weights = tf.maximum(1.0 - distances / tf.maximum(step, 1.0), 0.0)
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)
