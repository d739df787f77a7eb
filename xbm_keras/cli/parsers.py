"""Arguments of the commands without flags of absl.

Apart from what the commands do, so that a command can tell of them, and of mistakes in them, before it imports what
takes seconds.
"""

import argparse
import pathlib
import re
from collections.abc import Callable

from xbm_keras.cli.arguments import Parser

MODEL = "the workdir of a run, its export, or a version of it"
ENGINES = ("faiss", "lancedb", "usearch")  # those of index/approximate.py
STORES = ("faiss", "lancedb", "parquet", "pgvector", "qdrant")  # those of index/stores.py
AVERAGES = ("flip", "crops")  # those of data/views.py


def preview() -> argparse.ArgumentParser:
    """Of `xbm-keras preview`."""
    parser = Parser(
        prog="xbm-keras preview",
        description="Frozen features and closed forms on held-out training classes: leave it, solve it, or train it.",
    )
    parser.add_argument("--config", default="default", help="of the run that is thought of")
    _overrides(parser)
    return parser


def evaluate() -> argparse.ArgumentParser:
    """Of `xbm-keras evaluate`."""
    parser = Parser(
        prog="xbm-keras evaluate",
        description="Evaluate a finished run on any data, or embed them.",
    )
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--config", help="of the data, which need no labels; by default the run's own")
    _overrides(parser)
    parser.add_argument("--items", choices=("test", "all"), default="test", help="which of the data's items")
    parser.add_argument("--output", help="write the scores to this .json file")
    parser.add_argument(
        "--embed",
        help="write vectors [N, E] to this .npy file, and keys and labels, where there are some, to a .csv beside it; "
        "of queries and documents two of each, X.queries.npy and X.documents.npy",
    )
    parser.add_argument(
        "--average",
        nargs="+",
        choices=AVERAGES,
        default=[],
        help="also score, and embed, pictures averaged over these views, as export.average exports them",
    )
    return parser


def export() -> argparse.ArgumentParser:
    """Of `xbm-keras export`."""
    parser = Parser(prog="xbm-keras export", description="Export a finished run again.")
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--output", help="an .onnx or .tflite file; by default a SavedModel, the run's next version")
    parser.add_argument("--modules", help="a folder for the head as modules of sentence-transformers")
    parser.add_argument("--set", action="append", default=[], metavar="export.key=value", help="over the run's config")
    return parser


def embed() -> argparse.ArgumentParser:
    """Of `xbm-keras embed`."""
    parser = Parser(prog="xbm-keras embed", description="Vectors by an exported model.")
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument(
        "--input",
        required=True,
        help="a folder of pictures, a .txt with a text on each line, a .csv, .jsonl or .parquet with the columns text "
        "and, if wanted, id, or features of the network: an .npy, .npz or .parquet",
    )
    parser.add_argument(
        "--output", required=True, help="an .npy, beside which a .csv holds the ids, or a .parquet of ids and vectors"
    )
    return parser


def compress() -> argparse.ArgumentParser:
    """Of `xbm-keras compress`."""
    parser = Parser(
        prog="xbm-keras compress",
        description="Find the width, codes and rescoring of the fewest bytes that keep a promise, and export them.",
    )
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument(
        "--target",
        required=True,
        help='what is promised of held-out queries, such as "overlap@10 >= 0.95", of classes "map_at_r >= 0.6 and '
        'recall@10 > 0.9", or of pairs "ndcg@10 >= 0.8"',
    )
    parser.add_argument(
        "--bytes",
        choices=("searched", "all"),
        default="searched",
        help="which are to be few: those that a search reads, or these and those of the finer code together",
    )
    return parser


def duplicates() -> argparse.ArgumentParser:
    """Of `xbm-keras duplicates`."""
    parser = Parser(
        prog="xbm-keras duplicates",
        description="Items that are nearly the same, of one label or of two, and items among neighbours of another "
        "label: a table, and a page to look at.",
    )
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--index", type=pathlib.Path, help="look at the items of an index, by their embeddings")
    of.add_argument("--model", help="look at the data of a run, by their frozen features: " + MODEL)
    parser.add_argument("--config", help="with --model: of other data; they need no labels")
    _overrides(parser)
    parser.add_argument(
        "--pictures", nargs="+", default=[], metavar="[ROOT=]FOLDER", help="with --index: where its pictures are"
    )
    parser.add_argument(
        "--min_score", type=float, default=0.98, help="similarity from which on two are nearly the same"
    )
    parser.add_argument("--output", type=pathlib.Path, default="duplicates", help="writes OUTPUT.csv and OUTPUT.html")
    return parser


def serve() -> argparse.ArgumentParser:
    """Of `xbm-keras serve`."""
    parser = Parser(prog="xbm-keras serve", description="Serve embeddings and nearest items.")
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--index", type=pathlib.Path, help="the folder of the index's versions, to search")
    parser.add_argument(
        "--pictures",
        nargs="+",
        default=[],
        metavar="[ROOT=]FOLDER",
        help="folders of the items' pictures, to show them",
    )
    parser.add_argument(
        "--precision", type=float, help="tell which hits are matches, so that this share of them is right, such as 0.9"
    )
    parser.add_argument(
        "--approximate", action="store_true", help="search by the approximate search of the index, not exactly"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--port", type=_port, metavar="0..65535", default=8000)
    parser.add_argument(
        "--allowed_hosts", nargs="+", default=[], metavar="NAME", help="further names of this server, as browsers say"
    )
    parser.add_argument("--max_pixels", type=int, help="of all pictures of a request together")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds that a client may keep still")
    return parser


def cache() -> argparse.ArgumentParser:
    """Of `xbm-keras cache`."""
    parser = Parser(prog="xbm-keras cache", description="Caches of features and neighbours on disk.")
    parser.add_argument("--dir", default="~/.cache/xbm_keras", help="the folder of the caches (cache.dir)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is there")
    commands.add_parser("check", help="read every shard, and say which is damaged")
    delete = commands.add_parser("delete", help="remove caches")
    delete.add_argument("id", nargs="+", help="as `list` shows it, or 'all'")
    return parser


def index() -> argparse.ArgumentParser:
    """Of `xbm-keras index`; `run` names what is to be done."""
    parser = Parser(prog="xbm-keras index", description="A gallery to search.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, **kwargs) -> argparse.ArgumentParser:
        made = commands.add_parser(name, **kwargs)
        made.set_defaults(run=name)
        made.add_argument("--index", required=True, help="the folder of its versions")
        return made

    def model(made: argparse.ArgumentParser) -> None:
        made.add_argument("--model", required=True, help=MODEL)

    def items(made: argparse.ArgumentParser) -> None:
        made.add_argument("--pictures", help="a folder of them")
        made.add_argument("--texts", help="a CSV, JSONL or Parquet table with a column text, and perhaps id and label")
        made.add_argument("--vectors", help="features of the network: an .npy, .npz or Parquet file")
        metadata(made)

    def metadata(made: argparse.ArgumentParser) -> None:
        made.add_argument("--metadata", help="a CSV or Parquet table with a row for each id, given back with each hit")

    def queries(made: argparse.ArgumentParser, default: str = "") -> None:
        made.add_argument(
            "--features", help="a file of features [n, D], such as those of queries, in place of pictures"
        )
        made.add_argument("--text", action="append", help="a text; may be repeated")
        made.add_argument("picture", nargs="*", help=default or None)

    made = command("build", help="embed a run's data, or a folder or file of items")
    model(made)
    items(made)
    made.add_argument("--root", help="name of that folder, before the ids; by default none: ids are paths below it")
    made.add_argument("--config", help="of other data than the run's own; they need no labels")
    _overrides(made)
    made.add_argument("--items", choices=("test", "all"), default="all", help="which of the data's items")
    made.add_argument(
        "--approximate",
        nargs="?",
        const="usearch",
        choices=ENGINES,
        help="also an approximate search, by default by usearch; needs the extra [ann], lancedb the extra [stores]",
    )
    made.add_argument(
        "--form",
        help="how vectors are held and searched: float32, float16, int8, int4, trellis, binary, or two of them, "
        "'binary+int8', of which the second ranks the best 4 k again, perhaps after a width, '64 int8'; by default as "
        "the model's search.json says, else float32",
    )
    made.add_argument(
        "--mix", type=_positive, default=0, metavar="N", help="mix the N nearest items into each one and each query"
    )
    made = command("add", help="embed a folder or file of items, and add them")
    model(made)
    items(made)
    made.add_argument("--root", help="its name in the index; by default the one it has there, or the folder's own")
    made.add_argument("--replace", action="store_true", help="items whose ids are there already")
    made = command("sync", help="take up what is new, changed and gone in a folder or file")
    model(made)
    metadata(made)
    made.add_argument("--root", help="its name in the index; by default the one it has there, or the folder's own")
    made.add_argument("--allow_empty", action="store_true", help="also where nothing is left of it")
    made.add_argument("path", help="a folder of pictures, a table of texts, or a file of features")
    made = command("reembed", help="embed the items by a new head over the same network, from the cache")
    model(made)
    made = command("remove", help="remove items")
    made.add_argument("id", nargs="+")
    made = command("search", help="the items nearest to pictures, texts or features")
    model(made)
    made.add_argument("--k", type=_positive, default=10)
    made.add_argument("--approximate", action="store_true")
    made.add_argument("--precision", type=float, help="tell which hits are matches that are right this often")
    made.add_argument("--json", action="store_true", help="a line of JSON for each query")
    made.add_argument("--where", help="search these items alone: \"style = 'flat' and year > 2019\"")
    queries(made)
    made = command("label", help="suggest labels by the nearest items")
    made.add_argument("--model", help="that embedded the index; for pictures, texts and features")
    made.add_argument(
        "--precision", type=float, default=0.9, help="a suggestion that would be right less often is none"
    )
    made.add_argument("--output", type=pathlib.Path, default="labels.csv", help="the table of suggestions")
    queries(made, default="by default the items of the index that have no label")
    made = command("export", help="write the items for another store, which its own client reads")
    made.add_argument("--to", required=True, choices=STORES)
    made.add_argument("--output", required=True, help="the file or folder to write, which is not there yet")
    made = command("map", help="map the items into the space of another model, by those in both indexes")
    made.add_argument("--to", required=True, help="the index of the other model, which some of the items are in")
    return parser


OF_COMMAND: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "preview": preview, "evaluate": evaluate, "export": export, "embed": embed, "compress": compress,
    "duplicates": duplicates, "index": index, "serve": serve, "cache": cache,
}  # fmt: skip


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="over the config")


def _positive(text: str) -> int:
    """A number of the command line, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"received {text}; expected at least 1")
    return number


def _port(text: str) -> int:
    """Its number. Raises ArgumentTypeError for what is no port."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"received {text!r}; expected one of 0 to 65535.")
    return int(text)
