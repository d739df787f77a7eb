"""Training without labels, by plain compile and fit."""

import keras
import numpy as np
import pytest

from tests.conftest import compile_arguments
from xbm_keras import CircularMemory, HardTopK, Head, NeighborTopK, SimilarityAlignmentLoss, SupConLoss, XBMModel
from xbm_keras.evaluation.neighbors import FrozenNeighbors
from xbm_keras.evaluation.retrieval import embed


def make_data(n=96, width=12, seed=0):
    """Vectors of which a few directions hold most."""
    features = np.random.default_rng(seed).normal(size=(n, width)) * np.linspace(2, 0.2, width)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("float32")
    return {"features": features, "sample_id": np.arange(n)}


def make_model(memory_size=96, mode="eager", rate=0.02, **head):
    loss = SimilarityAlignmentLoss("listwise", 0.1, 0.1)
    model = XBMModel(None, Head(4, **head), CircularMemory(memory_size), NeighborTopK(8, 8), loss)
    model.compile(keras.optimizers.Adam(rate), **compile_arguments(mode))
    return model


def test_it_learns_to_keep_the_neighbours():
    x = make_data()
    model = make_model(mode="graph", widths=[2, 4])
    model.build({"features": (None, 12)})
    frozen = FrozenNeighbors(x["features"], ks=(10,))
    before = frozen.score(embed(model.head, x["features"]))["neighbor_overlap_at_10"]
    history = model.fit(x, batch_size=32, epochs=25, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert frozen.score(embed(model.head, x["features"]))["neighbor_overlap_at_10"] > before + 0.05


@pytest.mark.parametrize("memory_size", [0, 96])
def test_labels_that_are_given_change_nothing(memory_size):
    losses = []
    for y in (None, np.arange(96)):
        keras.utils.set_random_seed(1)
        fitted = make_model(memory_size).fit(make_data(), y, batch_size=48, epochs=2, verbose=0, shuffle=False)
        losses.append(fitted.history["loss"])
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_modes_train_alike():
    losses = []
    for mode in ("eager", "xla"):
        keras.utils.set_random_seed(1)
        model = make_model(mode=mode, widths=[2, 4])
        losses.append(model.fit(make_data(), batch_size=48, epochs=2, verbose=0, shuffle=False).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_saved_and_loaded_it_gives_the_same(tmp_path):
    x = make_data()
    model = make_model(widths=[2, 4])
    model.fit(x, batch_size=48, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.head.widths == (2, 4)
    losses = [m.fit(x, batch_size=48, verbose=0, shuffle=False).history["loss"] for m in (model, loaded)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_evaluate_needs_no_labels_either():
    model = make_model()
    model.fit(make_data(), batch_size=48, verbose=0)
    occupied = model.memory.num_enqueued.numpy()
    assert np.isfinite(model.evaluate(make_data(), batch_size=48, verbose=0, return_dict=True)["loss"])
    assert model.memory.num_enqueued.numpy() == occupied


@pytest.mark.parametrize(
    ("top_k", "loss"),
    [
        (lambda: HardTopK(4, 2), SimilarityAlignmentLoss()),
        (NeighborTopK, SupConLoss()),
    ],
)
def test_what_does_not_go_together_is_refused(top_k, loss):
    with pytest.raises(ValueError, match="expected NeighborTopK with a loss that uses no labels"):
        XBMModel(None, Head(4), CircularMemory(8), top_k(), loss)
