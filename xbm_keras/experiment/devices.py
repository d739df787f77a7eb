"""The devices of this machine that train a model."""

import contextlib

import tensorflow as tf

from xbm_keras.config.schema import Training
from xbm_keras.config.yaml_files import ConfigError


def let_memory_grow() -> None:
    """Take the memory of GPUs as it is needed, so that others may use them too; before TensorFlow starts them."""
    for gpu in tf.config.list_physical_devices("GPU"):
        # Where a GPU is divided, its parts say how much each takes.
        is_divided = tf.config.get_logical_device_configuration(gpu) is not None
        if not is_divided and not tf.config.experimental.get_memory_growth(gpu):
            with contextlib.suppress(RuntimeError):  # TensorFlow started them before, and what it took is taken
                tf.config.experimental.set_memory_growth(gpu, True)


def make_strategy(training: Training) -> tf.distribute.Strategy:
    """What `training.strategy` says: the default strategy, of one device, or one of all GPUs.

    Raises:
        ConfigError: for "mirrored" on a machine with a single device.
    """
    if training.strategy == "none":
        return tf.distribute.get_strategy()
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    if training.strategy == "auto" and len(gpus) < 2:
        return tf.distribute.get_strategy()
    if len(devices) < 2:
        raise ConfigError(
            f"Received training.strategy 'mirrored' on a machine of which TensorFlow sees {len(gpus)} GPUs; expected "
            "two GPUs or more, over which a batch is split. Leave training.strategy out: 'auto' takes all there are."
        )
    # The one way to reduce that can gather, too; what is reduced beside it is small: the gradient of the head.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([device.name for device in devices], cross_device_ops=reduction)
