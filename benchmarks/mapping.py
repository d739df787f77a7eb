"""An index of one network mapped into the space of another, from few photos that both embedded.

    python -m benchmarks.mapping [--pairs 100 500 2000] [--json FILE]

Grocery photos (XBM_KERAS_DATA, by default ../shared/data): MobileNetV2 is the old network, EfficientNet-lite0 the new
one, the last layer of each, pooled; what is measured is measured on the photos that are in no pair. `old network` asks
by old vectors among old ones; `new network` by new ones among new ones, which is what embedding all again gives; the
others by new vectors among mapped ones. The first run computes the features of both networks, for some minutes.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time

import numpy as np

from benchmarks import common
from xbm_keras.config.yaml_files import load_config
from xbm_keras.evaluation.exact_search import find_nearest
from xbm_keras.experiment import build, loading
from xbm_keras.geometry import unit_rows
from xbm_keras.index import mapping


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[100, 500, 2000])
    options = parser.parse_args()
    grocery = load_config("configs/grocery.yaml", ["backbone.layers=[out_relu]"])
    efficientnet = load_config("configs/emoji_efficientnet.yaml", ["backbone.layers=[head_relu]"])
    datasets = [loading.load_dataset(grocery, build.make_backbone(config)) for config in (grocery, efficientnet)]
    old, new = (unit_rows(np.asarray(dataset.features)) for dataset in datasets)
    labels = datasets[0].names_of(np.arange(len(old)))
    order = np.random.default_rng(0).permutation(len(old))
    rest = order[max(options.pairs) :]
    results = [
        {"name": "old network", **scores(old[rest], old[rest], new[rest], labels[rest])},
        {"name": "new network", **scores(new[rest], new[rest], new[rest], labels[rest])},
    ]
    for count in options.pairs:
        pairs = order[:count]
        start = time.perf_counter()
        chosen = mapping.fit_map(old[pairs], new[pairs])
        seconds = time.perf_counter() - start
        rotation = next(iter(mapping.candidates(old[pairs], new[pairs])))
        for name, each, took in (("rotation", rotation, None), (f"chosen: {chosen.name}", chosen, seconds)):
            found = scores(new[rest], each(old[rest]), new[rest], labels[rest])
            results.append({"name": name, "pairs": count, **found, "s": took})
    common.report(results, options)


def scores(queries, gallery, new, labels) -> dict[str, float]:
    """What `queries` find in `gallery`, each row of which is the same item, against what new vectors find."""
    own = np.arange(len(new))
    overlap = mapping.overlap(find_nearest(queries, gallery, mapping.NEIGHBORS, own), new)
    return {"recall@10 kept": overlap, "MAP@R": mapping.class_score(queries, gallery, labels)}


if __name__ == "__main__":
    main()
