"""From a network of Keras Applications to a searched index: image retrieval on folders of photos.

    python examples/photos_to_index.py my_photos --output photos_out [--weights imagenet] [--query photo.jpg]

`my_photos/<class>/<photo>`, of some dozens of classes. A MobileNetV2 that was trained on ImageNet gives the features
and is not trained. One half of the classes teaches an FC layer which differences matter; the other half says what
that is worth for classes that nobody has seen. Then all photos go into an index, which a SavedModel searches.
"""

import argparse
import pathlib

import numpy as np
import tensorflow as tf

from xbm_keras import Backbone, fit_head
from xbm_keras.data.listing import list_pictures
from xbm_keras.data.pictures import decode_picture
from xbm_keras.index.exported_model import fingerprint_of
from xbm_keras.index.galleries import write_index
from xbm_keras.index.gallery import Gallery


def read_photos(folder: pathlib.Path, size: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Photos as uint8 [size, size, 3], so that thousands fit into memory; their classes, and their paths."""
    paths = np.array(list_pictures(folder, only_in_folders=True).pictures)
    photos = []
    for path in paths:
        photo = tf.image.resize(decode_picture((folder / path).read_bytes()), (size, size), antialias=True)
        photos.append(tf.cast(tf.round(photo), tf.uint8).numpy())
    return photos, np.array([path.split("/")[0] for path in paths]), paths


def main(arguments: list[str] | None = None) -> dict:
    """The scores of classes never seen, frozen and trained."""
    parser = argparse.ArgumentParser(description="From photos to a searched index.")
    parser.add_argument("photos", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("photos_out"))
    parser.add_argument("--weights", default="imagenet", help="imagenet is downloaded once; a file; or none")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--query", help="a photo to search for; by default the first one")
    options = parser.parse_args(arguments)

    # 1. The data: half of the classes train, half are kept to see what the head is worth.
    photos, labels, paths = read_photos(options.photos, options.size)
    classes = np.random.default_rng(0).permutation(np.unique(labels))
    is_train = np.isin(labels, classes[: len(classes) // 2])
    print(f"{len(photos)} photos of {len(classes)} classes, {is_train.sum()} of which train.")

    # 2. The frozen network, whose maps of three depths are pooled, and the head. Which closed form it starts from, and
    # how far it is trained, is chosen on classes held out from those that train.
    weights = None if options.weights == "none" else options.weights
    backbone = Backbone.from_application("MobileNetV2", weights, (options.size, options.size))
    train, test = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    settings = {"views.number": 1, "views.turned_classes": False, "head.embedding_dim": 64}
    fitted = fit_head([photos[i] for i in train], labels[train], backbone=backbone, settings=settings)
    scores = fitted.evaluate([photos[i] for i in test], labels[test])
    for name, values in scores.items():
        print(f"{name:8} MAP@R {values['map_at_r']:.3f}  Recall@1 {values['recall_at_1']:.3f}")

    # 3. What serves: a SavedModel from encoded photos to vectors, and an index of all photos.
    version = fitted.export(options.output / "export")
    gallery = Gallery.of(fitted.transform(photos), paths, labels)
    write_index(options.output / "index", gallery, fingerprint_of(version))

    # 4. Search, as a server would that has TensorFlow alone.
    embed = tf.saved_model.load(str(version)).signatures["serve_bytes"]
    search = tf.saved_model.load(str(options.output / "index/1")).signatures["search"]
    query = pathlib.Path(options.query) if options.query else options.photos / paths[0]
    vector = embed(bytes=tf.constant([query.read_bytes()]))["embeddings"]
    found = search(embeddings=vector, k=tf.constant(5))
    print(f"Nearest to {query}:")
    for item, similarity in zip(found["ids"][0].numpy(), found["similarities"][0].numpy(), strict=True):
        print(f"  {similarity:.3f}  {item.decode()}")
    return scores


if __name__ == "__main__":
    main()
