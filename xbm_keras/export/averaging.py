"""Embeddings averaged over views of each picture, inside an exported model; and the file that says so beside it.

Letters: N pictures, V views of each, the picture itself among them, (h, w) the network's size, E embedding width.
"""

import json
import pathlib
from collections.abc import Callable, Sequence

import tensorflow as tf

from xbm_keras.atomic_files import write_whole
from xbm_keras.data.views import CHANGES, Average, changes_of
from xbm_keras.geometry import unit_length

FILE = "average.json"


def resized_views(resize: Callable, average: Sequence[Average]) -> Callable:
    """Of pictures [..., H, W, 3] their views, float32 [..., V, h, w, 3], each made of the picture before it is resized.

    Args:
        resize: a picture, or a batch of them, to the network's size.
        average: views beside the picture itself.
    """
    changes = changes_of(average).values()
    return lambda pictures: tf.stack([resize(pictures), *(resize(change(pictures)) for change in changes)], axis=-4)


def mean_of_views(embed: Callable) -> Callable:
    """Of views [N, V, h, w, 3] the mean embedding of each picture, of unit length: `{"embeddings": [N, E]}`.

    One view of all pictures passes the network after the other. So it takes no more memory than the plain pictures do,
    and a picture has the same bits as in another batch where its views would have had, each by itself.

    Args:
        embed: of pictures [N, h, w, 3], to `{"embeddings": [N, E]}`.
    """

    def call(views):
        rows = tf.map_fn(
            lambda number: embed(views[:, number])["embeddings"],
            tf.range(views.shape[1]),
            fn_output_signature=tf.float32,
            parallel_iterations=1,
        )
        return {"embeddings": unit_length(tf.reduce_mean(rows, axis=0))}

    return call


def write_average(version: pathlib.Path, average: Sequence[Average]) -> None:
    """Write `average.json` beside an exported model: the views that it averages, and how often a picture passes it."""
    views = list(changes_of(average))
    about = {"average": sorted(set(average)), "views": ["the picture", *views], "passes": 1 + len(views)}
    write_whole(version / FILE, json.dumps(about, indent=1))


def read_average(version: pathlib.Path) -> tuple[Average, ...]:
    """The views that an exported model averages; none, where no file says so. Raises ValueError for a damaged one."""
    path = version / FILE
    if not path.exists():
        return ()
    try:
        found = tuple(json.loads(path.read_text("utf-8"))["average"])
        if not found or not set(found) <= set(CHANGES):
            raise ValueError(f"average {found}")
        return found
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"Received {path}, which is damaged ({type(error).__name__}: {error}); expected it as it was written. "
            "Export the model anew."
        ) from error
