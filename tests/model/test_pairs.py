"""Training on queries and documents: what enters the memory, which side passes which layer, what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import compile_arguments
from xbm_keras import (
    CircularMemory,
    HardTopK,
    Head,
    InEmbeddings,
    InfoNCELoss,
    NonFiniteFeatures,
    RelevantTopK,
    Start,
    SupConLoss,
    XBMModel,
)
from xbm_keras.evaluation.pair_scores import PairEvaluation

D, N, Q = 8, 60, 40


def pairs(seed=0):
    """Queries that are their documents turned by one rotation, and a little noise: a head can learn to turn back."""
    random = np.random.default_rng(seed)
    documents = random.normal(size=(N, D)).astype(np.float32)
    rotation = np.linalg.qr(random.normal(size=(D, D)))[0].astype(np.float32)
    relevant = np.stack([np.arange(Q), np.where(np.arange(Q) % 3, -1, (np.arange(Q) + 7) % N)], axis=1)
    queries = documents[relevant[:, 0]] @ rotation + 0.05 * random.normal(size=(Q, D)).astype(np.float32)
    return queries, documents, relevant


def make_model(memory_size=N, mode="graph", frozen=True, head=None, **options):
    documents = pairs()[1]
    memory = CircularMemory(memory_size, frozen=frozen and memory_size == N)
    top_k = RelevantTopK(8, 2, mining=InEmbeddings())
    model = XBMModel(None, head or Head(D, sides="two"), memory, top_k, InfoNCELoss(0.1), **options)
    model.compile(keras.optimizers.Adam(0.02), **compile_arguments(mode))
    model.build({"features": (None, D)})
    if memory.frozen:
        memory.prefill(documents, np.zeros(N, int), np.arange(N))
    return model


def batch_of(queries, documents, relevant, with_documents):
    inputs = {"features": queries, "sample_id": np.arange(len(queries))}
    if with_documents:
        inputs |= {"document": documents[relevant[:, 0]], "document_id": relevant[:, 0]}
    return inputs, relevant


@pytest.mark.parametrize(("memory_size", "mode"), [(N, "xla"), (32, "graph"), (0, "graph")])
def test_it_learns_to_turn_queries_to_their_documents(memory_size, mode):
    queries, documents, relevant = pairs()
    model = make_model(memory_size, mode)
    evaluation = PairEvaluation(queries, documents, relevant)
    inputs, wanted = batch_of(queries, documents, relevant, with_documents=memory_size < N)
    history = model.fit(inputs, wanted, batch_size=20, epochs=30, verbose=0, callbacks=[evaluation])
    assert evaluation.baseline["val_ndcg_at_10"] < 0.4
    assert history.history["val_ndcg_at_10"][-1] > 0.8
    if memory_size == 32:
        assert model.memory.occupancy() == 32
        assert set(model.memory.sample_ids.numpy()) <= set(relevant[:, 0])


def test_a_head_of_queries_leaves_documents_as_they_are():
    queries, documents, relevant = pairs()
    model = make_model(head=Head(D, sides="query"))
    model.set_start(Start(np.eye(D, dtype="float32"), np.zeros(D, "float32")))
    before = model.head.on_rows(tf.constant(documents)).numpy()
    evaluation = PairEvaluation(queries, documents, relevant)
    history = model.fit(*batch_of(queries, documents, relevant, False), epochs=30, verbose=0, callbacks=[evaluation])
    assert history.history["val_ndcg_at_10"][-1] > 0.8
    np.testing.assert_array_equal(model.head.on_rows(tf.constant(documents)), before)
    np.testing.assert_allclose(before, documents / np.linalg.norm(documents, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("sides", ["both", "two"])
def test_both_sides_start_alike_and_two_layers_part(sides):
    queries, documents, relevant = pairs()
    model = make_model(head=Head(4, sides=sides))
    start = Start(np.eye(D, 4, dtype="float32"), np.zeros(4, "float32"))
    model.set_start(start)
    rows = tf.constant(documents)
    np.testing.assert_array_equal(model.head(rows), model.head.on_rows(rows))
    model.fit(*batch_of(queries, documents, relevant, False), verbose=0)
    assert np.allclose(model.head(rows), model.head.on_rows(rows)) == (sides == "both")
    assert np.abs(model.head.on_rows(rows) - tf.math.l2_normalize(rows[:, :4], axis=1)).max() > 1e-3


def test_a_saved_model_answers_and_goes_on_as_before(tmp_path):
    queries, documents, relevant = pairs()
    model = make_model()
    data = batch_of(queries, documents, relevant, False)
    model.fit(*data, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    rows = tf.constant(documents)
    np.testing.assert_array_equal(again.head.on_rows(rows), model.head.on_rows(rows))
    losses = [each.fit(*data, verbose=0, shuffle=False).history["loss"] for each in (model, again)]
    assert losses[0] == losses[1]


def test_of_one_document_for_several_queries_of_a_batch_one_row_counts():
    """In the batch as memory: a document that two queries brought is a positive of both, and a negative of none."""
    queries, documents, _ = pairs()
    relevant = np.zeros((4, 1), int)
    relevant[2:] = [[1], [2]]
    model = make_model(memory_size=0, mode="eager", head=Head(D))
    inputs, wanted = batch_of(queries[:4], documents, relevant, True)
    outputs = model(inputs)
    seen = []
    model.pair_loss = _Noting(seen)
    model.compute_loss(inputs, wanted, outputs, training=True)
    (picks,) = seen
    counts = (picks.is_valid & picks.is_positive).numpy().sum(axis=1), (picks.is_valid & ~picks.is_positive).numpy()
    assert counts[0].tolist() == [1, 1, 1, 1]
    assert counts[1].sum(axis=1).tolist() == [2, 2, 2, 2]


class _Noting(SupConLoss):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __call__(self, similarities, picks):
        self.seen.append(picks)
        return super().__call__(similarities, picks)


def test_a_document_that_is_not_finite_leaves_no_trace(mode):
    queries, documents, relevant = pairs()
    model = make_model(32, mode)
    inputs, wanted = batch_of(queries, documents, relevant, True)
    model.fit(inputs, wanted, batch_size=20, verbose=0, shuffle=False)
    before = [np.array(weight) for weight in model.weights]
    inputs["document"] = inputs["document"].copy()
    inputs["document"][3, 1] = np.nan
    with pytest.raises(NonFiniteFeatures, match="sample id 3;"):
        model.fit(inputs, wanted, batch_size=20, steps_per_epoch=1, verbose=0, shuffle=False)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_what_does_not_go_together_is_told():
    queries, documents, relevant = pairs()
    with pytest.raises(ValueError, match="expected 'document'"):
        make_model(32).fit(*batch_of(queries, documents, relevant, False), verbose=0)
    inputs, wanted = batch_of(queries, documents, relevant, True)
    with pytest.raises(ValueError, match="width 7"):
        make_model(32).fit({**inputs, "document": inputs["document"][:, :7]}, wanted, verbose=0)
    with pytest.raises(ValueError, match="dtype float32 and shape"):
        make_model().fit(batch_of(queries, documents, relevant, False)[0], relevant.astype("float32"), verbose=0)
    with pytest.raises(ValueError, match="sides='query' and HardTopK"):
        XBMModel(None, Head(D, sides="query"), CircularMemory(8), HardTopK(), SupConLoss())
    with pytest.raises(ValueError, match="4 dimensions for features of width 8"):
        make_model(head=Head(4, sides="query"))
