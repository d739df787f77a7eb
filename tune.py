"""Search for the best memory size, k, loss and head for your data, then train and export the best as train.py would.

python tune.py --config configs/clinc150.yaml --workdir runs/search --max_trials 60 --parallel 2
"""

import sys

import train  # noqa: F401  first: it keeps the start of TensorFlow quiet
from xbm_keras.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
