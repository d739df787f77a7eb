"""ONNX and LiteRT against the model."""

import numpy as np
import pytest

from tests.test_export import SIZE, image_model
from xbm_keras import Backbone, CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.other_runtimes import export_to


def features_model():
    model = XBMModel(None, Head(4, "mlp", 8), CircularMemory(64), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 6)})
    return model


def saved_model_model(tmp_path):
    whole = image_model()
    whole.backbone.network.export(tmp_path / "network", verbose=False)
    backbone = Backbone.from_saved_model(str(tmp_path / "network"), preprocessing="MobileNetV2", image_size=SIZE)
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
def test_onnx_gives_the_same(tmp_path, case):
    pytest.importorskip("tf2onnx", reason="needs the extra [onnx]")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    make, shape = CASES[case]
    model = make(tmp_path)
    session = runtime.InferenceSession(str(export_to(model, tmp_path / "model.onnx")))
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
