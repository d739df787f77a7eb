"""A small network, and folders that others are at work in: what the tests of the feature cache share."""

import functools
import os
import pathlib
import signal
import time

import keras

from tests.fresh_processes import start_python
from xbm_keras.data.sources import ImageFolder
from xbm_keras.feature_cache import digests as item_digests
from xbm_keras.feature_cache.cache import compute_features
from xbm_keras.stages.backbone.frozen import Backbone


@functools.cache  # so that it is traced once
def small_backbone(seed=0, image_size=(8, 8), units=5):
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [keras.Input((*image_size, 3)), keras.layers.Conv2D(units, 3), keras.layers.GlobalMaxPooling2D()],
        name="small",
    )
    return Backbone(network, image_size=image_size)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}


class Moody(ImageFolder):
    """Pictures that cannot be hashed, or not be loaded, as long as they are in a list."""

    def __init__(self, root, error: OSError):
        super().__init__(root)
        self.error, self.no_digest, self.no_load = error, [], []
        self.num_hashed = 0

    def digest(self, position):
        self.num_hashed += 1
        if position in self.no_digest:
            raise self.error
        return super().digest(position)

    def load(self, position):
        if position in self.no_load:
            raise self.error
        return super().load(position)


class Slow(ImageFolder):
    def load(self, position):
        time.sleep(0.05)
        return super().load(position)


class Deadly(ImageFolder):
    def digest(self, position):
        if position == 150:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().digest(position)


def compute_slowly(photos, cache):
    compute_features(Slow(photos), small_backbone(), cache, shard_rows=16, batch_size=4)


def die_while_hashing(photos, cache):
    item_digests.SECONDS_BETWEEN_WRITES, item_digests.MAX_SHARE = 0, 1e9
    compute_features(Deadly(photos), small_backbone(), cache)


def share(photos, cache, me, other, rounds, is_other_alive=lambda: True):
    """Compute features of two backbones at the same time as another process, again and again; they start together."""
    cache = pathlib.Path(cache)
    backbones = [small_backbone(seed) for seed in (0, 1)]
    for backbone in backbones:
        compute_features(ImageFolder(photos), backbone, cache / f"warm{me}")
    for number in range(int(rounds)):
        (cache / f"{me}-{number}").touch()
        while not (cache / f"{other}-{number}").exists():
            assert is_other_alive()
            time.sleep(0.001)
        for backbone in backbones[:: 1 if int(me) else -1]:
            result = compute_features(ImageFolder(photos), backbone, cache / f"round{number}", shard_rows=4)
            assert len(result.rows) == len(ImageFolder(photos).items.keys)


def start(errors, what, *arguments):
    """One of the functions above, in a process of its own, whose errors go to a file."""
    code = f"import sys; from tests.feature_cache import small; small.{what.__name__}(*sys.argv[1:])"
    return start_python(["-c", code, *arguments], os.devnull, errors)
