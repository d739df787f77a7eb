"""The head against numpy. pitfalls.md: gradient on both sides of a pair, zero rows, half precision, config."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import in_mode
from tests.reference_pairs import cosine, numerical_gradient
from xbm_keras import CircularMemory, HardTopK, Head, Picks, Rows, Start, SupConLoss, XBMModel

D, E = 5, 3
INDICES = np.array([[6, 2, 2], [0, 1, 4], [2, 5, 0], [3, 3, 3]])  # rows in and out of order, once, twice, thrice
WEIGHTS = np.array([[1.0, -2.0, 0.5], [3.0, 0.2, -1.0], [-0.7, 1.5, 2.0], [0.1, 0.4, -0.3]])  # of the pairs, all unlike
KINDS = ["linear", "residual", "mlp"]
PATHS = ["all rows", "picks"]  # ways in which compare() gets at the embeddings of the picks


def make_start(seed=1):
    random = np.random.default_rng(seed)
    return Start(random.normal(size=(D, E)).astype("float32"), random.normal(size=E).astype("float32"))


def make_head(kind="linear", start=None, **kwargs):
    head = Head(E, kind, hidden_dim=4, **kwargs)
    head.build((None, D))
    if start is not None:
        head.set_start(start)
    return head


def make_features(n, seed=0):
    features = np.random.default_rng(seed).normal(size=(n, D))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("float32")


def make_rows(features, is_valid=None):
    n = len(features)
    is_valid = np.ones(n, bool) if is_valid is None else is_valid
    return Rows(tf.constant(features), tf.range(n, dtype=tf.int64), tf.range(n, dtype=tf.int64), tf.constant(is_valid))


def make_picks(indices=INDICES):
    mask = tf.ones(indices.shape, tf.bool)
    return Picks(tf.constant(indices, tf.int32), mask, mask, tf.zeros(indices.shape))


def weights_by_hand(head, seed=2):
    """Give every trainable weight a value of its own, so that no part of the head is zero; as float64, by name."""
    random = np.random.default_rng(seed)
    for variable in head.trainable_weights:
        variable.assign(random.normal(size=variable.shape))
    return {variable.name: variable.numpy().astype("float64") for variable in head.weights}


def embed_by_hand(kind, weights, features):
    z = features @ weights["kernel"] + weights["bias"]
    if kind == "residual":
        z = z + features @ weights["delta"]
    if kind == "mlp":
        hidden = np.maximum(features @ weights["hidden_kernel"] + weights["hidden_bias"], 0)
        z = z + hidden @ weights["hidden_out"]
    return z


def compare_by_hand(kind, weights, features, row_features):
    anchors, rows = (embed_by_hand(kind, weights, x.astype("float64")) for x in (features, row_features))
    return np.array([[cosine(a, rows[i]) for i in picked] for a, picked in zip(anchors, INDICES, strict=True)])


def compare_by(path, head, features, rows, picks):
    """Similarities, and gradients of their weighted sum, on one of the ways."""
    with tf.GradientTape() as tape:
        embeddings = head.embed_rows(rows) if path == "all rows" else None
        (similarities,) = head.compare(head(features), rows._replace(embeddings=embeddings), picks)
        total = tf.reduce_sum(similarities * tf.constant(WEIGHTS, tf.float32))
    return similarities, tape.gradient(total, [variable.value for variable in head.trainable_weights])


# Weights and embeddings.


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_equals_its_start_before_training(kind, mode):
    start, features = make_start(), make_features(4)
    embeddings = in_mode(make_head(kind, start), mode)(tf.constant(features))
    z = features @ start.kernel + start.bias
    np.testing.assert_allclose(embeddings, z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_the_formula_of_its_docstring(kind):
    head, features = make_head(kind, make_start()), make_features(4)
    z = embed_by_hand(kind, weights_by_hand(head), features)
    np.testing.assert_allclose(head(features), z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0.5, 0.8])
def test_a_power_keeps_signs_and_makes_unit_length_anew(kind, power, mode):
    head, features = make_head(kind, make_start(), power=power), make_features(4)
    features[0, 1] = 0.0
    powered = np.sign(features) * np.abs(features) ** power
    powered /= np.linalg.norm(powered, axis=1, keepdims=True)
    z = embed_by_hand(kind, weights_by_hand(head), powered)
    embeddings = in_mode(head, mode)(tf.constant(features))
    np.testing.assert_allclose(embeddings, z / np.linalg.norm(z, axis=1, keepdims=True), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_random_start_is_the_same_for_each_kind_and_follows_the_seed(kind):
    features = make_features(4)
    plain = make_head(seed=3)(features)
    same, other = (make_head(kind, seed=seed)(features) for seed in (3, 4))
    np.testing.assert_allclose(same, plain, atol=1e-6)
    assert np.abs(other - plain).max() > 0.1


def test_which_weights_train():
    """The residual kind's start is frozen, so that weight decay pulls toward it."""
    names = {kind: [v.name for v in make_head(kind).trainable_weights] for kind in KINDS}
    assert names["linear"] == ["kernel", "bias"]
    assert names["residual"] == ["delta"]
    assert names["mlp"] == ["kernel", "bias", "hidden_kernel", "hidden_bias", "hidden_out"]
    assert [v.name for v in make_head("residual").non_trainable_weights] == ["kernel", "bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_leaves_its_start_by_training(kind):
    """The zero weights of a kind get a gradient: no weight is stuck behind another one."""
    head, features = make_head(kind, make_start()), tf.constant(make_features(8))
    for _ in range(2):  # of the mlp, U moves once V has left zero
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(head(features) * tf.constant([1.0, -2.0, 3.0]))
        slopes = tape.gradient(total, [v.value for v in head.trainable_weights])
        for variable, slope in zip(head.trainable_weights, slopes, strict=True):
            variable.assign_sub(0.1 * slope)
    assert all(np.abs(slope).max() > 0 for slope in slopes)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_float32_of_unit_length_under_any_policy(kind, policy, mode):
    keras.config.set_dtype_policy(policy)
    head, features = make_head(kind, make_start()), make_features(6)
    weights = weights_by_hand(head)
    assert {variable.dtype for variable in head.weights} == {"float32"}
    embeddings = in_mode(head, mode)(tf.constant(features))
    assert embeddings.dtype == tf.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)
    z = embed_by_hand(kind, weights, features)
    tolerance = {"float32": 1e-6, "mixed_float16": 5e-3, "mixed_bfloat16": 5e-2}[policy]
    np.testing.assert_allclose(embeddings, z / np.linalg.norm(z, axis=1, keepdims=True), atol=tolerance)


# Similarities of anchors and picks.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_similarities_and_their_gradient_equal_numpy(kind, path, mode):
    """All ways agree, and the gradient reaches the weights through the anchors as well as through the picked rows."""
    head = make_head(kind, make_start())
    features, row_features = make_features(4), make_features(7, seed=1)
    weights = weights_by_hand(head)
    rows, picks = make_rows(row_features), make_picks()
    similarities, slopes = in_mode(lambda f: compare_by(path, head, f, rows, picks), mode)(tf.constant(features))
    assert similarities.dtype == tf.float32
    np.testing.assert_allclose(similarities, compare_by_hand(kind, weights, features, row_features), atol=2e-6)
    for variable, slope in zip(head.trainable_weights, slopes, strict=True):

        def total(value, name=variable.name):
            return np.sum(WEIGHTS * compare_by_hand(kind, {**weights, name: value}, features, row_features))

        expected = numerical_gradient(total, weights[variable.name])
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=2e-5, err_msg=variable.name)


@pytest.mark.parametrize("side", ["anchor", "row"])
def test_each_side_alone_has_a_gradient(side):
    """The sum above could hide a side that is missing, were the other one wrong in the same way."""
    head = make_head(start=make_start())
    features, row_features = make_features(4), make_features(7, seed=1)
    weights = {variable.name: variable.numpy().astype("float64") for variable in head.weights}
    rows, picks = make_rows(row_features), make_picks()
    fixed = {name: embed_by_hand("linear", weights, x) for name, x in (("anchor", features), ("row", row_features))}

    def total(kernel):
        moved = {"kernel": kernel, "bias": weights["bias"]}
        anchors = embed_by_hand("linear", moved, features) if side == "anchor" else fixed["anchor"]
        embeddings = embed_by_hand("linear", moved, row_features) if side == "row" else fixed["row"]
        cosines = [[cosine(a, embeddings[i]) for i in picked] for a, picked in zip(anchors, INDICES, strict=True)]
        return np.sum(WEIGHTS * cosines)

    with tf.GradientTape() as tape:
        anchors, row_embeddings = head(features), head.embed_rows(rows)
        if side == "anchor":
            row_embeddings = tf.stop_gradient(row_embeddings)
        else:
            anchors = tf.stop_gradient(anchors)
        (similarities,) = head.compare(anchors, rows._replace(embeddings=row_embeddings), picks)
        value = tf.reduce_sum(similarities * tf.constant(WEIGHTS, tf.float32))
    expected = numerical_gradient(total, weights["kernel"])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(tape.gradient(value, head.kernel.value), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("num_filled", [0, 1, 5])
@pytest.mark.parametrize("path", PATHS)
def test_slots_that_were_never_filled_give_finite_gradients(path, num_filled, mode):
    """A zero row has no direction: its gradient is NaN in a careless normalisation, though no pair uses it."""
    head = make_head()  # its bias is zero, so a zero row stays zero
    memory = CircularMemory(7)
    memory.build((None, D))
    filled = make_features(num_filled, seed=1) if num_filled else np.zeros((0, D), "float32")
    rows = memory.enqueue(tf.constant(filled), tf.range(num_filled), tf.range(num_filled))
    picks = make_picks(INDICES % max(num_filled, 1))
    function = in_mode(lambda f: compare_by(path, head, f, rows, picks), mode)
    similarities, slopes = function(tf.constant(make_features(4)))
    assert np.isfinite(similarities).all()
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_embed_rows_gives_slots_that_are_not_valid_the_first_row():
    head, features = make_head(start=make_start()), make_features(4)
    features[3] = 0
    embeddings = head.embed_rows(make_rows(features, [True, True, False, False]))
    np.testing.assert_array_equal(embeddings[:2], head(features[:2]))
    np.testing.assert_array_equal(embeddings[2:], head(features[[0, 0]]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("path", PATHS)
def test_rows_in_half_precision(path, dtype, tolerance):
    head, features, row_features = make_head(start=make_start()), make_features(4), make_features(7, seed=1)
    weights = weights_by_hand(head)
    rows = make_rows(row_features)._replace(features=tf.cast(row_features, dtype))
    similarities, slopes = compare_by(path, head, features, rows, make_picks())
    assert similarities.dtype == tf.float32
    np.testing.assert_allclose(similarities, compare_by_hand("linear", weights, features, row_features), atol=tolerance)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_each_picked_row_passes_the_head_once(monkeypatch):
    """Rows that many anchors pick would else be embedded many times."""
    head, num_embedded = make_head(), []
    rows, picks = make_rows(make_features(7)), make_picks()
    anchors = head(make_features(4))
    call = head.call

    def noted(features):
        num_embedded.append(features.shape[0])
        return call(features)

    monkeypatch.setattr(head, "call", noted)
    head.compare(anchors, rows, picks)
    tf.function(lambda: head.compare(anchors, rows, picks), jit_compile=True)()  # XLA has no tf.unique
    assert num_embedded == [len(np.unique(INDICES)), INDICES.size]


def test_one_trace_for_picks_of_changing_variety():
    """The number of unique picks changes from step to step."""
    head, rows, traces = make_head(), make_rows(make_features(7)), []

    @tf.function
    def step(anchors, indices):
        traces.append(1)
        return head.compare(anchors, rows, make_picks(INDICES)._replace(indices=indices))

    for indices in (INDICES, np.zeros_like(INDICES), INDICES[::-1]):
        step(tf.constant(make_features(4)[:, :E]), tf.constant(indices, tf.int32))
    assert len(traces) == 1


# Constructor, configuration, files.


@pytest.mark.parametrize(
    ("received", "message"),
    [
        ({"embedding_dim": 0}, r"embedding_dim=0; expected a whole number in 1\.\.65536\. Dimensions E"),
        ({"embedding_dim": 2.0}, r"embedding_dim=2\.0; expected a whole number"),
        ({"embedding_dim": 4, "hidden_dim": -1}, "hidden_dim=-1; expected a whole number"),
        ({"embedding_dim": 4, "power": 0}, "power=0; expected a number above 0, at most 1"),
        ({"embedding_dim": 4, "power": 1.5}, r"power=1\.5; expected a number above 0, at most 1"),
        ({"embedding_dim": 4, "kind": "deep"}, "kind='deep'; expected one of 'linear', 'residual', 'mlp'"),
    ],
)
def test_parameters_that_are_refused(received, message):
    with pytest.raises(ValueError, match=message):
        Head(**received)


def test_a_start_of_other_widths_is_refused():
    head = Head(E)
    head.build((None, 4))
    with pytest.raises(ValueError, match=r"start of shape \(5, 3\); this head maps 4 to 3 dimensions"):
        head.set_start(make_start())


def test_config_round_trip():
    """keras-rs layers lose arguments in get_config."""
    arguments = {"embedding_dim": 6, "kind": "mlp", "hidden_dim": 11, "power": 0.7, "seed": 5}
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Head(**arguments, name="h")))
    assert {name: getattr(again, name) for name in arguments} == arguments
    assert again.name == "h"


@pytest.mark.parametrize("kind", KINDS)
def test_files_restore_the_weights_and_the_frozen_start(kind, tmp_path):
    model = XBMModel(None, Head(E, kind, hidden_dim=4), CircularMemory(0), HardTopK(1, 1), SupConLoss())
    model.build({"features": (None, D)})
    model.head.set_start(make_start())
    weights_by_hand(model.head)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    features = make_features(4)
    np.testing.assert_array_equal(again.head(features), model.head(features))
    assert [v.name for v in again.head.trainable_weights] == [v.name for v in model.head.trainable_weights]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["linear", "residual", "mlp"])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_sixteen_bits_with_power(policy, kind, power):
    head = Head(4, kind, 8, power=power, dtype=policy)  # while the global policy is float32
    head.build((None, 6))
    exact = Head(4, kind, 8, power=power)
    exact.build((None, 6))
    exact.set_weights(head.get_weights())
    features = tf.math.l2_normalize(tf.random.stateless_normal((7, 6), (0, 1)), axis=1)
    embeddings = head(features)
    assert embeddings.dtype == tf.float32
    np.testing.assert_allclose(embeddings, exact(features), atol=0.03)
