"""ONNX and LiteRT against the model."""

import keras
import numpy as np
import pytest

from tests.export.test_saved_model import SIZE, image_model
from xbm_keras import Backbone, CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.export import other_runtimes
from xbm_keras.export.other_runtimes import export_to


def features_model():
    model = XBMModel(None, Head(4, "mlp", 8), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 6)})
    return model


def saved_model_model(tmp_path):
    whole = image_model()
    whole.backbone.network.export(tmp_path / "network", verbose=False)
    backbone = Backbone.from_file(str(tmp_path / "network"), preprocessing="MobileNetV2", image_size=SIZE)
    model = XBMModel(backbone, Head(4), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 16)})
    return model


CASES = {
    "pictures": (lambda _: image_model(), (*SIZE, 3)),
    "features": (lambda _: features_model(), (6,)),
    "a SavedModel": (saved_model_model, (*SIZE, 3)),
}


@pytest.mark.filterwarnings("ignore")  # of the converters
@pytest.mark.parametrize("case", CASES)
def test_onnx_gives_the_same(tmp_path, case, caplog):
    pytest.importorskip("tf2onnx", reason="needs the extra [onnx]")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    make, shape = CASES[case]
    model = make(tmp_path)
    with caplog.at_level("INFO", "xbm_keras"):
        session = runtime.InferenceSession(str(export_to(model, tmp_path / "model.onnx")))
    (taken,) = session.get_inputs()
    assert f"It takes '{taken.name}', float32 [N, {', '.join(map(str, shape))}]" in caplog.text
    assert ("RGB of 0 to 255; it gives embeddings" in caplog.text) == (len(shape) == 3)
    for n in (1, 5):
        x = np.random.default_rng(n).uniform(0, 255, (n, *shape)).astype(np.float32)
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(found, model.encoder.predict(x, verbose=0), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_litert_gives_the_same(tmp_path, case):
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra [litert]")
    make, shape = CASES[case]
    model = make(tmp_path)
    interpreter = litert.Interpreter(model_path=str(export_to(model, tmp_path / "model.tflite")))
    place, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    for n in (1, 5):
        x = np.random.default_rng(n).uniform(0, 255, (n, *shape)).astype(np.float32)
        interpreter.resize_tensor_input(place, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, x)
        interpreter.invoke()
        np.testing.assert_allclose(interpreter.get_tensor(out), model.encoder.predict(x, verbose=0), atol=1e-5)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.onnx or \.tflite"):
        export_to(features_model(), tmp_path / "model.pt")


# --- mixed precision, and files that do not run ---


def mixed_model(policy):
    """A network and a head that compute in 16 bits, with all that the head has."""
    keras.config.set_dtype_policy(policy)
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Dropout(0.1)])
    backbone = Backbone(network, "MobileNetV2", (8, 8))
    model = XBMModel(backbone, Head(4, power=0.5), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"inputs": (None, 8, 8, 3)})
    assert model.head.compute_dtype == policy.removeprefix("mixed_")
    keras.config.set_dtype_policy("float32")
    return model


def reading(suffix):
    """A function from a path and inputs to embeddings."""
    if suffix == ".onnx":
        pytest.importorskip("tf2onnx", reason="needs the extra [onnx]")
        runtime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
        return lambda path, x: runtime.InferenceSession(str(path)).run(None, {"inputs": x})[0]
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra [litert]")
    return lambda path, x: litert.Interpreter(str(path)).get_signature_runner()(inputs=x)["output_0"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_mixed_precision_is_exported_in_float32(tmp_path, policy, suffix):
    read, model = reading(suffix), mixed_model(policy)
    x = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3)).astype(np.float32)
    found = read(export_to(model, tmp_path / f"model{suffix}"), x)
    kernel, bias = (weight.numpy() for weight in model.backbone.network.weights)
    patches = np.lib.stride_tricks.sliding_window_view(x / 127.5 - 1, (3, 3), axis=(1, 2))  # [3, 6, 6, 3, 3, 3]
    maps = np.einsum("nhwcij,ijcd->nhwd", patches, kernel) + bias
    features = maps.mean((1, 2))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rooted = np.sign(features) * np.sqrt(np.abs(features))
    expected = rooted / np.linalg.norm(rooted, axis=1, keepdims=True) @ model.head.kernel.numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert model.head.compute_dtype == policy.removeprefix("mixed_")  # as before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_file_that_gives_something_else_gets_no_name(tmp_path, suffix, monkeypatch):
    reading(suffix)
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"of before")
    model, runtimes = features_model(), dict(other_runtimes.RUNTIMES)

    def turned(side):
        return lambda inputs: runtimes[suffix](side)(inputs)[:, ::-1]

    def cut(side):
        side.write_bytes(side.read_bytes()[:100])
        return runtimes[suffix](side)

    for broken, message in ((turned, "gives other embeddings, which differ by"), (cut, "does not run")):
        monkeypatch.setitem(other_runtimes.RUNTIMES, suffix, broken)
        with pytest.raises(ValueError, match=rf"export as model\{suffix} {message}"):
            export_to(model, path)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == b"of before"
