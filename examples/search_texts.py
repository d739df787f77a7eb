"""Search the documents of a run on texts: the tokenizer is the client's, the rest TensorFlow's.

    python train.py --config configs/pairs.yaml --set data.path=my_pairs --workdir runs/mine
    xbm-keras index build --index runs/mine/index --model runs/mine
    python examples/search_texts.py runs/mine "query: how do plants eat" "query: what is a quasar"

A SavedModel takes token ids: the operations of tokenizers are not TensorFlow's own. The run left its tokenizer, which
keras_hub reads (extra [hub]), and which comes with the length that texts are cut to. Put before a query what
`data.query_prefix` says.
"""

import argparse
import pathlib

import keras_hub
import tensorflow as tf


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="the workdir of the run")
    parser.add_argument("query", nargs="+")
    parser.add_argument("--k", type=int, default=5)
    options = parser.parse_args()
    for query, answers in zip(options.query, search(options.run, options.query, options.k), strict=True):
        print(query)
        for name, similarity in answers:
            print(f"  {similarity:.4f}  {name}")


def search(run: pathlib.Path, queries: list[str], k: int = 5) -> list[list[tuple[str, float]]]:
    """For each query the k nearest documents, ids and cosine similarities, the nearest first."""
    tokenizer = keras_hub.models.TextClassifierPreprocessor.from_preset(str(run / "tokenizer"))
    model = tf.saved_model.load(str(newest(run / "export")))
    index = tf.saved_model.load(str(newest(run / "index")))
    tokens = {name: tf.cast(tokenizer(queries)[name], tf.int32) for name in ("token_ids", "padding_mask")}
    vectors = model.signatures["serve_query"](**tokens)["embeddings"]
    found = index.signatures["search"](embeddings=vectors, k=tf.constant(k))
    ids, similarities = found["ids"].numpy(), found["similarities"].numpy()
    return [
        [(name.decode(), float(value)) for name, value in zip(*row, strict=True)]
        for row in zip(ids, similarities, strict=True)
    ]


def newest(folder: pathlib.Path) -> pathlib.Path:
    """The version with the highest number."""
    return max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


if __name__ == "__main__":
    main()
