"""An exported model that averages views: each signature of pictures gives the mean that training code would take."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.export.test_saved_model import BAD, PICTURES, call_in_a_fresh_process, encoded, image_model, inputs_of
from xbm_keras import Backbone, CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.data.sources import decode_picture
from xbm_keras.export.averaging import read_average
from xbm_keras.export.saved_model import describe_signatures, export_encoder
from xbm_keras.index.exported_model import ExportedModel

ALL = ["crops", "flip"]


def views_of(picture, average):
    """The picture and its views, by rules of their own."""
    height, width = picture.shape[:2]
    views = [picture]
    if "flip" in average:
        views.append(np.fliplr(picture))
    for share in (0.875, 0.75) if "crops" in average else ():
        h, w = (int(size * share + 0.5) for size in (height, width))
        top, left = (height - h) // 2, (width - w) // 2
        views.append(picture[top : top + h, left : left + w])
    return views


def mean_embeddings(model, pictures, average):
    """[N, E] of encoded pictures: each view is prepared and embedded as a picture of training is."""
    means = []
    for data in pictures:
        views = [model.backbone.prepare(np.ascontiguousarray(view)) for view in views_of(decode_picture(data), average)]
        means.append(model.encoder.predict(np.stack(views), verbose=0).mean(axis=0))
    return np.array(means) / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def model():
    return image_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export_encoder(model, tmp_path_factory.mktemp("export"), average=["flip", "crops", "flip"])


def test_every_signature_of_pictures_gives_the_mean_of_the_views(model, exported, tmp_path):
    one_size, images, features, mixed = inputs_of(model)
    answers = call_in_a_fresh_process(
        exported,
        {
            "serving_default inputs some": images.astype(np.float32),
            "serving_default inputs none": images[:0].astype(np.float32),
            "serve_uint8 inputs some": images,
            "serve_features features some": features,
            "serve_bytes bytes none": np.array([], dtype=object),
            "serve_bytes bytes mixed": mixed,
            "serve_bytes bytes bad": np.array(BAD, dtype=object),
        },
        tmp_path,
    )
    expected = mean_embeddings(model, one_size, ALL)
    for signature in ("serving_default inputs", "serve_uint8 inputs"):
        np.testing.assert_allclose(answers[f"{signature} some embeddings"], expected, atol=1e-5, err_msg=signature)
    assert answers["serving_default inputs none embeddings"].shape == (0, 4)
    assert answers["serve_bytes bytes none embeddings"].shape == (0, 4)
    is_good = np.array([data in PICTURES for data in mixed])
    found = answers["serve_bytes bytes mixed embeddings"]
    assert answers["serve_bytes bytes mixed valid"].tolist() == is_good.tolist()
    np.testing.assert_allclose(found[is_good], mean_embeddings(model, mixed[is_good], ALL), atol=1e-5)
    assert not found[~is_good].any()
    assert not answers["serve_bytes bytes bad embeddings"].any()
    plain = model.encoder.predict(np.stack([model.backbone.prepare(each) for each in images]), verbose=0)
    np.testing.assert_allclose(answers["serve_features features some embeddings"], plain, atol=1e-5)
    assert np.abs(expected - plain).max() > 1e-3  # the views say something


def test_formats_that_tensorflow_does_not_know_are_averaged_as_well(model, exported):
    pictures = [encoded(30, 41, "TIFF"), encoded(30, 41, "PNG")]
    embeddings, valid = ExportedModel(exported).embed(pictures)
    assert valid.all()
    np.testing.assert_allclose(embeddings, mean_embeddings(model, pictures, ALL), atol=1e-5)


def test_the_smallest_pictures(model, exported):
    serve = tf.saved_model.load(str(exported)).signatures
    pictures = [encoded(1, 1), encoded(2, 3), encoded(1, 40)]
    found = serve["serve_bytes"](bytes=tf.constant(pictures))["embeddings"]
    np.testing.assert_allclose(found, mean_embeddings(model, pictures, ALL), atol=1e-5)


def test_a_picture_has_the_same_bits_in_passes_of_a_server_of_any_size(exported):
    """Views pass the network one after the other: together they would be more than such passes may have."""
    serve = tf.saved_model.load(str(exported)).signatures["serve_bytes"]
    pictures = [encoded(30, 41, seed=i) for i in range(6)]
    all_of_them = serve(bytes=tf.constant(pictures))["embeddings"].numpy()
    for count in (2, 3, 5):
        found = serve(bytes=tf.constant(pictures[:count]))["embeddings"].numpy()
        np.testing.assert_array_equal(found, all_of_them[:count])


def test_widths_are_beginnings_of_the_mean_and_codes_are_of_it(tmp_path):
    backbone = image_model().backbone
    model = XBMModel(backbone, Head(4, widths=[2, 4]), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 16)})
    version = export_encoder(model, tmp_path, average=["crops"], codes=["int8"])
    signatures = tf.saved_model.load(str(version)).signatures
    pictures = [encoded(30, 41), encoded(9, 50)]
    mean = mean_embeddings(model, pictures, ["crops"])
    full = signatures["serve_bytes"](bytes=tf.constant(pictures))
    half = signatures["serve_bytes_2"](bytes=tf.constant(pictures))
    np.testing.assert_allclose(full["embeddings"], mean, atol=1e-5)
    np.testing.assert_allclose(
        half["embeddings"], mean[:, :2] / np.linalg.norm(mean[:, :2], axis=1, keepdims=True), atol=1e-5
    )
    for outputs in (full, half):
        rows = outputs["embeddings"].numpy()
        codes = np.rint(127 * rows / np.abs(rows).max(axis=1, keepdims=True))
        np.testing.assert_array_equal(outputs["embeddings_int8"], codes)
    assert [each["embeddings"].shape[1] for each in (full, half)] == [4, 2]
    assert signatures["serve_bytes"].structured_outputs["embeddings"].shape[1] == 4  # a client may ask before a call


def test_weights_of_float16_and_a_model_in_mixed_precision(model, tmp_path):
    pictures = [encoded(30, 41), encoded(9, 50)]
    half = export_encoder(model, tmp_path / "half", weights="float16", average=["flip"])
    found = ExportedModel(half).embed(pictures)[0]
    assert 0 < np.abs(found - mean_embeddings(model, pictures, ["flip"])).max() < 1e-2
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = image_model()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    for mine, other in zip((mixed.backbone, mixed.head), (model.backbone, model.head), strict=True):
        mine.set_weights(other.get_weights())
    found = ExportedModel(export_encoder(mixed, tmp_path / "mixed", average=["crops"])).embed(pictures)[0]
    np.testing.assert_allclose(found, mean_embeddings(model, pictures, ["crops"]), atol=1e-5)


def convolutions(version):
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    return sum(node.op == "Conv2D" for f in saved.meta_graphs[0].graph_def.library.function for node in f.node_def)


def test_the_graph_of_the_network_is_there_once_however_many_views_there_are(model, exported, tmp_path):
    plain, averaged = export_encoder(model, tmp_path), exported
    assert convolutions(averaged) == convolutions(plain)
    assert describe_signatures(averaged) == describe_signatures(plain)
    size = [sum(p.stat().st_size for p in (v / "variables").iterdir()) for v in (plain, averaged)]
    assert abs(size[1] - size[0]) < 2000


def test_an_export_says_what_it_averages(model, exported, tmp_path):
    assert read_average(tmp_path) == ()  # of a plain one there is no file
    version = shutil.copytree(exported, tmp_path / "export")
    assert read_average(version) == ("crops", "flip")
    about = json.loads((version / "average.json").read_text())
    assert (about["passes"], about["views"][:2]) == (4, ["the picture", "mirrored"])
    for damaged in ("", "[]", '{"average": []}', '{"average": ["turns"]}'):
        (version / "average.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"average\.json, which is damaged"):
            read_average(version)


def test_views_are_of_pictures_alone(tmp_path):
    features = XBMModel(None, Head(4), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    features.build({"features": (None, 6)})
    network = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6)])
    numbers = XBMModel(Backbone(network), Head(4), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    numbers.build({"features": (None, 6)})
    for model in (features, numbers):
        with pytest.raises(ValueError, match=r"average=\['crops'\] with a model that takes no pictures"):
            export_encoder(model, tmp_path, average=["crops"])
    with pytest.raises(ValueError, match=r"average=\['turns'\]; expected a list, each one of 'flip', 'crops'"):
        export_encoder(image_model(), tmp_path, average=["turns"])
    assert not list(tmp_path.glob("[0-9]*"))


@pytest.mark.slow
def test_real_photos_through_mobilenet(data_dir, tmp_path):
    weights = data_dir / "weights/mobilenet_v2_imagenet_224.weights.h5"
    backbone = Backbone.from_application("MobileNetV2", str(weights))
    model = XBMModel(backbone, Head(16), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 2048)})
    version = export_encoder(model, tmp_path / "export", average=ALL)
    folders = sorted((data_dir / "grocery/test").iterdir())[:4]
    pictures = [sorted(pathlib.Path(folder).glob("*.jpg"))[0].read_bytes() for folder in folders]
    call = {"serve_bytes bytes photos": np.array(pictures, dtype=object)}
    answers = call_in_a_fresh_process(version, call, tmp_path)
    expected = mean_embeddings(model, pictures, ALL)
    np.testing.assert_allclose(answers["serve_bytes bytes photos embeddings"], expected, atol=1e-5)
