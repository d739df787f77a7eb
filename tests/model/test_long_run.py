"""A run of 20,000 steps: it neither grows nor slows down, and the step is traced once."""

import json

import pytest

from tests.fresh_processes import run_fresh

LONG_RUN = """
import json, sys, time
import keras
import numpy as np
import psutil
from xbm_keras import *

traces, memory, seconds = [], [], []

class Counted(SupConLoss):
    def __call__(self, similarities, picks):
        traces.append(1)
        return super().__call__(similarities, picks)

class Watch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        memory.append(psutil.Process().memory_info().rss / 1e6)
        seconds.append(time.monotonic())

rng = np.random.default_rng(0)
model = XBMModel(
    None, Head(8), CircularMemory(1024), HardTopK(8, 4, mining=InEmbeddings(64)), Counted()
)
model.build({"features": (None, 32)})
model.compile(keras.optimizers.Adam(1e-4))
model.optimizer.build(model.trainable_variables)  # a function that makes variables is traced twice
x = {"features": rng.normal(size=(16_000, 32)).astype(np.float32), "sample_id": np.arange(16_000)}
history = model.fit(x, np.arange(16_000) % 100, batch_size=16, epochs=20, verbose=0, callbacks=[Watch()])
print(json.dumps({
    "steps": int(model.optimizer.iterations.value), "enqueued": int(model.memory.num_enqueued.value),
    "traces": len(traces), "megabytes": memory, "seconds": np.diff(seconds).tolist(), "loss": history.history["loss"],
}))
"""


@pytest.mark.slow
def test_twenty_thousand_steps():
    run = json.loads(run_fresh(LONG_RUN, timeout=1200).splitlines()[-1])
    print(run)  # throughput is for the reader: machines are too noisy to assert it
    assert run["steps"] == 20_000
    assert run["enqueued"] == 320_000
    assert run["traces"] == 1
    assert run["megabytes"][-1] - run["megabytes"][4] < 10
    assert run["loss"][-1] < run["loss"][0]
