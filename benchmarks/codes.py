"""What each code keeps of the frozen features' neighbours, by bytes of an item, as `xbm-keras compress` measures it.

    python -m benchmarks.codes --configs configs/compress_clinc150.yaml configs/compress_grocery.yaml

Of cuts of the frozen features, without a head: mean and lower bound (95 %) of overlap@10 of held-out queries, and the
mean of test items. `--bytes` are the shares of the frozen bytes between which a row is shown. `items/s` is encoding,
`queries/s` a search for the eleven nearest of the gallery of held-out and training items.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import time

import numpy as np

from benchmarks import common
from xbm_keras.config.yaml_files import load_config
from xbm_keras.evaluation.promises import Trial, parse_promises
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.experiment import build, loading
from xbm_keras.experiment.compression import FORMS, MIXED_FOR, Cut, Embeddings
from xbm_keras.experiment.trials import trials_of
from xbm_keras.index.coded_search import CodedSearch, SearchForm

PROMISED = parse_promises("overlap@10 >= 0.95")
TRIED = [code for code, _ in FORMS]


def main():
    options = common.parser(__doc__)
    options.add_argument("--configs", nargs="+", default=["configs/compress_clinc150.yaml"])
    options.add_argument("--codes", nargs="+", choices=TRIED, default=TRIED)
    options.add_argument("--widths", nargs="+", type=int, default=[], help="beside those that compress tries")
    options.add_argument("--bytes", nargs=2, type=float, default=[1 / 20, 1 / 7], metavar=("LEAST", "MOST"))
    options = options.parse_args()
    results = []
    for path in options.configs:
        config = load_config(path)
        trials = trials_of(loading.load_dataset(config, build.make_backbone(config)))
        (held_out, ordering), (test, _) = trials.held_out(PROMISED), trials.test(PROMISED)
        searches = (held_out, Embeddings(None, ordering)), (test, Embeddings(None, trials.final_ordering()))
        dim = held_out.gallery.shape[1]
        for code in options.codes:
            for width in sorted({*searches[0][1].widths, *(each for each in options.widths if each <= dim)}):
                num_bytes = CODES[code].bytes_per_item(width)
                if not options.bytes[0] <= num_bytes / (4 * dim) <= options.bytes[1]:
                    continue
                for blocks in MIXED_FOR.get(code, (0, 1)):
                    cut = Cut("frozen", blocks, width)
                    (values, *speeds), (on_test, *_) = (score(*each, cut, code) for each in searches)
                    results.append(
                        {
                            "data": pathlib.Path(path).stem.removeprefix("compress_"),
                            "name": f"{code}{', mixed' if blocks else ''}",
                            "dimensions": width,
                            "bytes": num_bytes,
                            "of the frozen": f"1/{4 * dim / num_bytes:.1f}",
                            "overlap@10": f"{values.mean():.3f} ({held_out.bounds([values])[0]:.3f})",
                            "test": f"{on_test.mean():.3f}",
                            "items/s": round(speeds[0]),
                            "queries/s": round(speeds[1]),
                        }
                    )
    common.report(results, options)


def score(trial: Trial, source: Embeddings, cut: Cut, code: str) -> tuple[np.ndarray, float, float]:
    """What a code keeps of each query, items that it encodes, and queries that it answers, in a second."""
    matrix, form = source.matrix(cut), SearchForm(cut.width, code)
    queries, gallery = source.of_queries(trial.queries) @ matrix, source.of_gallery(trial.gallery) @ matrix
    CodedSearch.of(gallery[:64], form).find(queries[:64], trial.num_found)  # the first call is slow
    times = [time.perf_counter()]
    search = CodedSearch.of(gallery, form)
    times.append(time.perf_counter())
    found, _ = search.find(queries, trial.num_found)
    times.append(time.perf_counter())
    encoding, answering = times[1] - times[0], times[2] - times[1]
    return trial.values(found)[0], len(gallery) / encoding, len(queries) / answering


if __name__ == "__main__":
    main()
