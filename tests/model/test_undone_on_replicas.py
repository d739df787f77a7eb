"""A step whose loss is not finite leaves no trace on any of several devices."""

from tests.fresh_processes import run_fresh
from tests.model.test_replicas import TWO_DEVICES

BURSTING = """
class Bursting(SupConLoss):
    def __init__(self):
        super().__init__()
        self.extra = tf.Variable(0.0, trainable=False)

    def __call__(self, similarities, picks):  # the first anchor of each replica
        is_first = tf.range(tf.shape(similarities)[0]) == 0
        return super().__call__(similarities, picks) + tf.where(is_first, self.extra, 0.0)


def fit(model):
    return model.fit(x, y, batch_size=16, shuffle=False, verbose=0).history


def everything():
    return [copy for v in model.variables + model.optimizer.variables for copy in copies(v)]


for arguments in dict(memory_size=20), dict(memory_size=60, mining=InEmbeddings(7)):
    with strategy.scope():
        memory = CircularMemory(arguments.pop("memory_size"))
        model = XBMModel(None, Head(3), memory, HardTopK(4, 2, **arguments), Bursting())
        model.build({"features": (None, 6)})
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), jit_compile=False)
    fit(model)
    before = everything()
    model.pair_loss.extra.assign(np.inf)
    again = {name: values[:16] for name, values in x.items()}
    with pytest.raises(NonFiniteLoss):
        model.fit(again, y[:16], batch_size=16, verbose=0)
    for found, expected in zip(everything(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    model.pair_loss.extra.assign(0.0)
    assert np.isfinite(fit(model)["loss"]).all()
    assert copies(memory.num_enqueued)[0] == copies(memory.num_enqueued)[1] == 96
"""


def test_no_trace_on_any_replica():
    run_fresh(TWO_DEVICES + BURSTING)
