"""Makes the small network that ships with the package: a classifier of Latin and Cyrillic characters, cut short.

python examples/pretrain_glyph_net.py --output xbm_keras/stages/backbone/weights/glyph_net.keras
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported: no wall of start-up messages

import keras
import numpy as np
from absl import app, flags
from keras import layers

from xbm_keras.data.glyphs import SIZE, Glyphs

OUTPUT = flags.DEFINE_string("output", "glyph_net.keras", "Where the network goes.")
EPOCHS = flags.DEFINE_integer("epochs", 4, "Passes through the drawings.")
DRAWINGS = flags.DEFINE_integer("drawings", 1, "Of each character and font; one more measures the accuracy.")


def make_network() -> keras.Model:
    """Pictures [B, 48, 48, 3] in 0..255 to features [B, 576]: 3 x 3 places with 64 values each."""
    x = inputs = keras.Input((SIZE, SIZE, 3), name="pictures")
    x = layers.Rescaling(-1 / 255, offset=1.0)(x)  # ink is 1, paper 0
    for filters, kernel_size, strides in ((16, 5, 2), (48, 3, 1), (96, 3, 1)):
        x = layers.Conv2D(filters, kernel_size, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.95)(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 1)(x)
    return keras.Model(inputs, layers.Flatten()(x), name="glyph_net")


def main(argv):
    """Draw, train, measure, save."""
    del argv
    keras.utils.set_random_seed(0)
    source = Glyphs(drawings=DRAWINGS.value + 1, pretraining=True)
    pictures = np.stack([source.load(i) for i in range(len(source.items.keys))])
    names, labels = np.unique(source.items.labels, return_inverse=True)
    is_held_out = np.char.endswith(source.items.keys, f"/{DRAWINGS.value}")
    network = make_network()
    classifier = keras.Sequential(
        [network, layers.ReLU(), layers.Dropout(0.2), layers.Dense(len(names), activation="softmax")]
    )
    steps = EPOCHS.value * int(np.ceil((~is_held_out).sum() / 128))
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=3e-3, warmup_steps=steps // 20)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.01)
    classifier.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    classifier.fit(pictures[~is_held_out], labels[~is_held_out], 128, EPOCHS.value, verbose=2)
    _, accuracy = classifier.evaluate(pictures[is_held_out], labels[is_held_out], 128, verbose=0)
    network.save(OUTPUT.value)
    print(
        f"{len(pictures) - is_held_out.sum():,} drawings of {len(names):,} characters, {network.count_params():,} "
        f"parameters; {accuracy:.3f} of {is_held_out.sum():,} other drawings are recognised"
    )


if __name__ == "__main__":
    app.run(main)
