"""A version is compared with the model before it gets its name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.export.test_saved_model import image_model
from xbm_keras import CircularMemory, HardTopK, Head, SupConLoss, XBMModel
from xbm_keras.export.saved_model import export_encoder


def test_a_version_that_gives_something_else_gets_no_number(tmp_path, monkeypatch):
    model, load = image_model(), tf.saved_model.load
    export_encoder(model, tmp_path)

    class Turned:
        def __init__(self, path):
            saved = load(path)
            self.saved = saved  # a function lives as long as what it was loaded with
            self.signatures = {name: self.turned(function) for name, function in saved.signatures.items()}

        def turned(self, function):
            return lambda **inputs: {"embeddings": function(**inputs)["embeddings"][:, ::-1]}

    monkeypatch.setattr(tf.saved_model, "load", Turned)
    with pytest.raises(ValueError, match=r"as the signature .* gives other embeddings, which differ by"):
        export_encoder(model, tmp_path)
    monkeypatch.setattr(tf.saved_model, "load", lambda path: load(path + "/nothing"))
    with pytest.raises(ValueError, match="as the SavedModel does not run"):
        export_encoder(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "batching.config"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_head_in_mixed_precision_serves_in_float32(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    model = XBMModel(None, Head(4, power=0.5), CircularMemory(0), HardTopK(4, 2), SupConLoss())
    model.build({"features": (None, 6)})
    keras.config.set_dtype_policy("float32")
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    served = tf.saved_model.load(str(export_encoder(model, tmp_path))).signatures["serve_features"](features=x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    rooted = np.sign(unit) * np.sqrt(np.abs(unit))
    expected = rooted / np.linalg.norm(rooted, axis=1, keepdims=True) @ model.head.kernel.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(served["embeddings"], expected, atol=1e-5)
    assert model.head.compute_dtype == policy.removeprefix("mixed_")
    assert np.abs(model.head(tf.constant(unit)) - expected).max() > 1e-4  # itself it computes in 16 bits
