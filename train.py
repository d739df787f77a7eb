"""Train the head of a frozen network, evaluate it on classes never seen, and export it.

python train.py --config configs/grocery.yaml --workdir runs/grocery --set training.epochs=10
"""

import gc
import os
import sys

gc.disable()  # what is imported stays, so that there is nothing to collect, now or later
if "--verbose" not in sys.argv:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its libraries complain about CUDA before they read any setting
    # Keras would import it, if it is there, for classes that no command uses.
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    try:
        import tensorflow as tf  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        if sys.modules["sklearn"] is None:
            del sys.modules["sklearn"]

from xbm_keras.cli.__main__ import main

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
