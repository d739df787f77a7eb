"""Models that earlier versions saved with flags: each is the object that it stands for, and brings its variables."""

import keras
import numpy as np
import pytest

from tests.test_contract import FEATURES, LABELS, SAVED
from xbm_keras import ClosedForms, InEmbeddings, InFeatures, InSketch


@pytest.mark.parametrize(
    ("name", "mining", "arguments", "is_frozen", "weight"),
    [
        ("prefilled", InFeatures, {}, True, 3.0),
        ("keys", InEmbeddings, {"refresh": 3}, True, 2.0),
        ("exact_keys", InEmbeddings, {"refresh": "exact"}, False, None),
        ("sketch", InSketch, {"dim": 4, "rerank": 2, "seed": 3}, False, 1.0),
    ],
)
def test_flags_are_objects(name, mining, arguments, is_frozen, weight):
    model = keras.saving.load_model(SAVED / "0.1.0-flags" / f"{name}.keras")
    assert type(model.top_k.mining) is mining
    assert model.top_k.mining.get_config() == arguments
    assert model.memory.frozen == is_frozen
    assert (model.start_alignment and model.start_alignment.weight) == weight
    if weight:
        start = ClosedForms(FEATURES, LABELS).pca(3).scaled()
        np.testing.assert_allclose(model.start_alignment.start.kernel, start.kernel, atol=1e-5)
    if name in ("keys", "sketch"):
        np.testing.assert_allclose(np.linalg.norm(model.top_k.mining.stored.keys, axis=1).max(), 1, rtol=1e-4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert again.get_config() == model.get_config()  # in the form of this version
