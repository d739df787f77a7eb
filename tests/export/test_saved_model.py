"""The exported model: what it takes, that it answers as in training, and what it refuses."""

import io
import json
import pathlib
import textwrap

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tests import picture_files
from tests.conftest import ROOT
from tests.fresh_processes import run_without_keras
from xbm_keras import Backbone, CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.config.schema import Export
from xbm_keras.data.decoding import MAX_PIXELS
from xbm_keras.data.sources import decode_picture
from xbm_keras.export.saved_model import describe_signatures, export_encoder
from xbm_keras.index.exported_model import ExportedModel, why_invalid

SIZE = (12, 10)
CALL = """
    import sys
    import numpy as np
    import tensorflow as tf
    signatures = tf.saved_model.load(sys.argv[1]).signatures
    answers = {}
    with np.load(sys.argv[2], allow_pickle=True) as calls:
        for call in calls.files:
            name, key, _ = call.split()
            inputs = calls[call]
            tensor = tf.constant(inputs.tolist() if key == "bytes" else inputs, tf.string if key == "bytes" else None)
            for output, value in signatures[name](**{key: tensor}).items():
                answers[f"{call} {output}"] = value.numpy()
    assert "xbm_keras" not in sys.modules
    np.savez(sys.argv[3], **answers)
"""


def image_model(weights_seed=0):
    keras.utils.set_random_seed(weights_seed)
    network = keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    backbone = Backbone(network, preprocessing="MobileNetV2", image_size=SIZE, name="backbone")
    model = XBMModel(backbone, Head(4), CircularMemory(4096), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 16)})
    model.compile(keras.optimizers.AdamW(1e-3))
    model.optimizer.build(model.trainable_variables)
    return model


def encoded(height, width, kind="PNG", seed=0, mode="RGB", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


PICTURES = [
    encoded(30, 41, "JPEG"), encoded(12, 10, "JPEG", progressive=True), encoded(9, 50, "JPEG", mode="L"),
    encoded(25, 20),
    encoded(20, 20, mode="RGBA"), encoded(13, 31, "GIF", mode="P"), encoded(5, 9, "BMP"), encoded(33, 9, "WEBP"),
]  # fmt: skip
BAD = [b"", b"no picture", PICTURES[0][:300], PICTURES[3][:60], b"\xff\xd8\xff", b"GIF89a"]


@pytest.fixture(scope="module")
def model():
    return image_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export_encoder(model, tmp_path_factory.mktemp("export"))


def as_in_training(model, pictures):
    """Embeddings by the way that training data takes: decode, resize one by one, backbone, head."""
    images = np.stack([model.backbone.prepare(decode_picture(data)) for data in pictures])
    return model.encoder.predict(images, verbose=0)


def call_in_a_fresh_process(version, calls, tmp_path):
    """Outputs of `{"<signature> <input> <name>": value}`, by a process that imports TensorFlow and NumPy alone."""
    np.savez(tmp_path / "calls.npz", **calls)
    run_without_keras(textwrap.dedent(CALL), version, tmp_path / "calls.npz", tmp_path / "answers.npz")
    with np.load(tmp_path / "answers.npz") as answers:
        return dict(answers)


def inputs_of(model):
    """Files of one size, their pictures and features; and readable files among others."""
    one_size = [encoded(30, 41, seed=i) for i in range(3)]
    images = np.stack([decode_picture(data) for data in one_size])
    features = model.backbone(images).numpy()
    mixed = np.array([*PICTURES, *BAD], dtype=object)[np.random.default_rng(0).permutation(len(PICTURES) + len(BAD))]
    return one_size, images, features, mixed


def test_every_signature_answers_as_in_training(model, exported, tmp_path):
    one_size, images, features, mixed = inputs_of(model)
    answers = call_in_a_fresh_process(
        exported,
        {
            "serving_default inputs some": images.astype(np.float32),
            "serving_default inputs none": images[:0].astype(np.float32),
            "serve_uint8 inputs some": images,
            "serve_uint8 inputs none": images[:0],
            "serve_features features some": features,
            "serve_features features none": features[:0],
            "serve_bytes bytes some": np.array(one_size, dtype=object),
            "serve_bytes bytes none": np.array([], dtype=object),
            "serve_bytes bytes mixed": mixed,
            "serve_bytes bytes bad": np.array(BAD, dtype=object),
        },
        tmp_path,
    )
    expected = as_in_training(model, one_size)
    for call in (
        "serving_default inputs", "serve_uint8 inputs", "serve_features features", "serve_bytes bytes",
    ):  # fmt: skip
        np.testing.assert_allclose(answers[f"{call} some embeddings"], expected, atol=1e-5, err_msg=call)
        assert answers[f"{call} none embeddings"].shape == (0, 4)
    is_good = np.array([data in PICTURES for data in mixed])
    assert answers["serve_bytes bytes mixed valid"].tolist() == is_good.tolist()
    found = answers["serve_bytes bytes mixed embeddings"]
    np.testing.assert_allclose(found[is_good], as_in_training(model, mixed[is_good]), atol=1e-5)
    assert not found[~is_good].any()
    assert not answers["serve_bytes bytes bad embeddings"].any()
    assert answers["serve_bytes bytes bad valid"].tolist() == [False] * len(BAD)
    assert answers["serve_bytes bytes none valid"].shape == (0,)


def test_there_is_nothing_inside_but_backbone_and_head(model, exported):
    stored = tf.train.list_variables(str(exported / "variables/variables"))
    count = sum(int(np.prod(shape)) for name, shape in stored if "VARIABLE_VALUE" in name)
    assert count == model.backbone.count_params() + model.head.count_params()
    assert (exported / "variables/variables.data-00000-of-00001").stat().st_size < 4 * count + 2000


def test_a_picture_of_too_many_pixels_is_refused(model, tmp_path):
    version = export_encoder(model, tmp_path, max_pixels=1000)
    serve = tf.saved_model.load(str(version)).signatures["serve_bytes"]
    assert serve(bytes=tf.constant([encoded(25, 40), encoded(25, 41)]))["valid"].numpy().tolist() == [True, False]


def test_by_default_a_picture_of_a_telephone_is_the_largest(exported):
    """12.6 megapixels: a black PNG of them is a few kilobytes, and takes a third of a second of a core."""
    allowed, refused = io.BytesIO(), io.BytesIO()
    PIL.Image.new("1", (4096, 3072)).save(allowed, "PNG")
    PIL.Image.new("1", (4096, 3073)).save(refused, "PNG")
    serve = tf.saved_model.load(str(exported)).signatures["serve_bytes"]
    valid = serve(bytes=tf.constant([allowed.getvalue(), refused.getvalue()]))["valid"]
    assert valid.numpy().tolist() == [True, False]
    assert Export().max_pixels == MAX_PIXELS == 4096 * 3072


def test_the_index_reads_what_training_reads(model, tmp_path):
    """Formats that TensorFlow does not know, pictures that a server would refuse, and no others."""
    version = export_encoder(model, tmp_path / "export", max_pixels=1000)
    good = [encoded(9, 50, "TIFF"), encoded(9, 50, "JPEG"), encoded(40, 50), encoded(9, 50, "JPEG2000")]
    served = tf.saved_model.load(str(version)).signatures["serve_bytes"](bytes=tf.constant(good))["valid"]
    assert served.numpy().tolist() == [False, True, False, False]
    embeddings, valid = ExportedModel(version).embed([*BAD, *good])
    assert valid.tolist() == [False] * len(BAD) + [True] * len(good)
    np.testing.assert_allclose(embeddings[len(BAD) :], as_in_training(model, good), atol=1e-5)
    (tmp_path / "bad.jpg").write_bytes(PICTURES[0][:300])
    assert why_invalid(tmp_path / "bad.jpg") == "no picture that can be read: a corrupt picture"
    assert why_invalid(tmp_path / "none.jpg") == "no picture that can be read: No such file or directory"


@pytest.mark.filterwarnings("ignore:Palette images")
def test_pictures_of_all_kinds_are_served_as_training_sees_them(model, exported):
    files = {**picture_files.exact(), **picture_files.turned()}
    files = {name: data for name, (data, *_) in files.items() if "tiff" not in name}
    files["motion photo"] = encoded(30, 41, "JPEG") + np.random.default_rng(0).bytes(3_000_000) + b"\xff\xda" * 1000
    outputs = tf.saved_model.load(str(exported)).signatures["serve_bytes"](bytes=tf.constant(list(files.values())))
    assert outputs["valid"].numpy().all()
    np.testing.assert_allclose(outputs["embeddings"], as_in_training(model, files.values()), atol=1e-5)


def test_versions_count_up_and_give_equal_answers(model, exported):
    second = export_encoder(model, exported.parent)
    assert [exported.name, second.name] == ["1", "2"]
    serve, again = (tf.saved_model.load(str(version)).signatures["serve_bytes"] for version in (exported, second))
    data = tf.constant(PICTURES)
    np.testing.assert_array_equal(serve(bytes=data)["embeddings"], again(bytes=data)["embeddings"])


def test_float16_is_half_the_size_and_nearly_the_same(model, exported, tmp_path):
    version = export_encoder(model, tmp_path, weights="float16")
    dtypes = {dtype for _, dtype in stored_dtypes(version)}
    assert dtypes == {tf.float16, tf.float32}
    data = tf.constant(PICTURES)
    full, half = (tf.saved_model.load(str(v)).signatures["serve_bytes"](bytes=data) for v in (exported, version))
    similarities = (full["embeddings"].numpy() * half["embeddings"].numpy()).sum(axis=1)
    assert 0 < np.abs(full["embeddings"] - half["embeddings"]).max() < 1e-2
    assert similarities.min() > 0.9999


def stored_dtypes(version):
    """Shape and dtype of each stored variable."""
    reader = tf.train.load_checkpoint(str(version / "variables/variables"))
    types = reader.get_variable_to_dtype_map()
    return [(name, dtype) for name, dtype in types.items() if "VARIABLE_VALUE" in name]


def test_weights_that_float16_cannot_hold_are_refused(tmp_path):
    model = image_model()
    model.head.kernel.assign(model.head.kernel * 1e6)
    with pytest.raises(ValueError, match="whose values it cannot hold"):
        export_encoder(model, tmp_path, weights="float16")
    with pytest.raises(ValueError, match="weights='int8'; expected one of 'float32', 'float16'"):
        export_encoder(model, tmp_path, weights="int8")
    with pytest.raises(
        ValueError,
        match=r"codes=\['int2'\]; expected a list, each one of 'float16', 'int8', 'int4', 'trellis', 'layers'",
    ):
        export_encoder(model, tmp_path, codes=["int2"])
    assert not list(tmp_path.glob("[0-9]*"))


def test_a_model_of_features_serves_features(tmp_path):
    model = XBMModel(None, Head(4), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 6)})
    signatures = tf.saved_model.load(str(export_encoder(model, tmp_path))).signatures
    assert set(signatures) == {"serving_default", "serve_features"}
    features = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    for serve in signatures.values():
        found = serve(features=tf.constant(features))["embeddings"]
        np.testing.assert_allclose(found, model.encoder.predict(features, verbose=0), atol=1e-6)


def test_signatures_are_described(exported):
    assert describe_signatures(exported) == {
        "serving_default": "`inputs`: float32 [N, H, W, 3]",
        "serve_uint8": "`inputs`: uint8 [N, H, W, 3]",
        "serve_bytes": "`bytes`: string [N]",
        "serve_features": "`features`: float32 [N, 16]",
    }


def test_requests_to_warm_up_are_as_tf_serving_reads_them(exported):
    logs = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason="needs tensorflow-serving-api")
    path = exported / "assets.extra/tf_serving_warmup_requests"
    loaded = tf.saved_model.load(str(exported))
    names = []
    for record in tf.data.TFRecordDataset(str(path)):
        request = logs.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        name = request.model_spec.signature_name
        outputs = loaded.signatures[name](**inputs)
        assert outputs["embeddings"].shape == (1, 4)
        assert np.all(outputs.get("valid", True))
        names.append(name)
    assert names == ["serve_bytes", "serve_features", "serve_uint8", "serving_default"]
    assert (exported.parent / "batching.config").read_text().startswith("max_batch_size")


def test_a_model_exported_by_an_older_commit_still_loads():
    folder = ROOT / "tests/old_export"
    serve = tf.saved_model.load(str(folder / "1")).signatures["serving_default"]
    with np.load(folder / "answers.npz") as old:
        np.testing.assert_allclose(serve(inputs=tf.constant(old["inputs"]))["embeddings"], old["embeddings"], atol=1e-5)
    assert json.loads((folder / "about.json").read_text())["commit"]


@pytest.mark.slow
def test_ten_thousand_bad_inputs_leave_the_process_alive_and_its_memory_flat(exported):
    """Truncated, corrupted, random and huge ones, with a good one among them whose answer never changes."""
    serve = tf.saved_model.load(str(exported)).signatures["serve_bytes"]
    rng = np.random.default_rng(0)
    good = PICTURES[0]
    answer = serve(bytes=tf.constant([good]))["embeddings"].numpy()[0]
    memory = []
    for _ in range(500):
        batch = [damaged(PICTURES[rng.integers(len(PICTURES))], rng) for _ in range(20)]
        place = rng.integers(21)
        batch.insert(place, good)
        outputs = serve(bytes=tf.constant(batch, tf.string))
        valid = outputs["valid"].numpy()
        assert valid[place]
        np.testing.assert_allclose(outputs["embeddings"][place], answer, atol=1e-6)
        assert not outputs["embeddings"].numpy()[~valid].any()
        assert np.isfinite(outputs["embeddings"]).all()
        memory.append(resident_mb())
    assert memory[-1] - memory[100] < 50, memory[::50]


def resident_mb():
    """Memory of this process, MB."""
    status = pathlib.Path("/proc/self/statm").read_text().split()
    return int(status[1]) * 4096 / 1e6


def damaged(data, rng):
    """A picture that was cut, scribbled over, made huge in its header, or is noise."""
    kind = rng.integers(4)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind == 1:
        octets = bytearray(data)
        for place in rng.integers(len(octets), size=rng.integers(1, 30)):
            octets[place] = rng.integers(256)
        return bytes(octets)
    if kind == 2:
        octets = bytearray(data)
        for place in rng.integers(4, 40, size=8):
            octets[place] = 255
        return bytes(octets)
    return data[: rng.integers(12)] + rng.bytes(rng.integers(2000))


def test_each_signature_is_traced_once(tmp_path, monkeypatch):
    model = XBMModel(None, Head(4, widths=[2, 4]), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 6)})
    traced, call = [], Head.call

    def counted(head, features):
        traced.extend([features] * (not tf.executing_eagerly()))
        return call(head, features)

    monkeypatch.setattr(Head, "call", counted)
    version = export_encoder(model, tmp_path)
    assert len(traced) == len(describe_signatures(version)) == 4
