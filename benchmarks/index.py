"""A gallery of a million vectors: building, adding, removing and searching it, beside FAISS and USearch.

    python -m benchmarks.index [--rows 1000000] [--forms int4 binary+int8] [--engines faiss lancedb] [--json FILE]

Vectors of 128 dimensions about 10,000 random centres, seeded. `build`, `add` and `remove` (of 1,000 items) write a
version of an index, as the command does, by itself and with each approximate search. `search` asks for the 10 nearest
of 100 queries at once, and of one alone, and tells how many of the exact 10 are found; "where" asks for those among the
tenth of the items that meets a condition. Each row is a process of its own, whose seconds and peak memory are those of
all that it does. FAISS flat is an IndexFlatIP, in memory, and FAISS SQ4 and SQ8 are its scalar quantizers of four and
eight bits; ratios are to the first. Of each form that an index may be held in, and of FAISS, there are the bytes of an
item that a search reads, and those that it reads of candidates alone. USearch's graph is left out by default: a
million vectors take two cores a good while. Needs `pip install ".[bench,ann,stores]"`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import common

WIDTH = 128
CENTRES = 10_000
SPREAD = 0.7
CHANGED = 1000
QUERIES = 100
K = 10
GROUPS = 10  # of items, one of which a condition asks for
WHERE = "part = 3"


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--forms", nargs="*", default=["int8", "int4", "binary+int8"], choices=FORMS, help="in codes")
    parser.add_argument(
        "--engines",
        nargs="*",
        default=["faiss", "lancedb"],
        choices=["faiss", "lancedb", "usearch"],
        help="approximate ones",
    )
    parser.add_argument("--folder", type=pathlib.Path, help="for vectors and indexes; by default a temporary one")
    parser.add_argument("--step", choices=STEPS, help="what a process of this benchmark does")
    options = parser.parse_args()
    if options.step:
        start = time.perf_counter()
        found = STEPS[options.step](options.folder, options.rows) or {}
        found = {"s": time.perf_counter() - start, **found, "peak MB": common.peak_mb()}
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or pathlib.Path(scratch)
        results = []
        steps = [*EXACT, *(each for form in options.forms for each in coded(form))]
        for step in [*steps, *(each for engine in options.engines for each in approximate(engine))]:
            results.append({"name": step, **_process(step, folder, options.rows)})
            print(results[-1], flush=True)
    flat = next(each for each in results if each["name"] == "search: FAISS flat")
    for each in results:
        if "ms of 100" in each:
            each["ratio"] = each["ms of 100"] / flat["ms of 100"]
    common.report(results, options)


def _process(step: str, folder: pathlib.Path, num_rows: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.index", f"--step={step}", f"--folder={folder}", f"--rows={num_rows}"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def make(folder, num_rows):
    """Vectors of items and queries, and of each query the exact answers by FAISS."""
    import faiss

    rng = np.random.default_rng(0)
    centres = common.unit_vectors(CENTRES, WIDTH, seed=1)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (num_rows + CHANGED + QUERIES, WIDTH))
    for start in range(0, len(vectors), 100_000):
        part = vectors[start : start + 100_000]
        noise = rng.standard_normal(part.shape, np.float32) * (SPREAD / np.sqrt(WIDTH))
        part[:] = centres[rng.integers(CENTRES, size=len(part))] + noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    vectors.flush()
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors[:num_rows])
    queries = np.ascontiguousarray(vectors[-QUERIES:])
    np.save(folder / "exact.npy", index.search(queries, K)[1])
    some = faiss.IndexFlatIP(WIDTH)
    some.add(np.ascontiguousarray(vectors[3:num_rows:GROUPS]))
    np.save(folder / "exact_where.npy", 3 + GROUPS * some.search(queries, K)[1])
    return {}


def build(folder, num_rows):
    """The exact index."""
    galleries.write_index(folder / "index", _gallery(folder, 0, num_rows), "model")


def build_coded(folder, num_rows, form):
    """The exact index in codes."""
    held = SearchForm.parse(form, WIDTH)
    galleries.write_index(folder / form, _gallery(folder, 0, num_rows), "model", form=held)
    codes = sum(
        path.stat().st_size for segment in OpenedIndex.newest(folder / form).segments for path in _codes(segment)
    )
    return {"bytes of an item": held.bytes_in_memory, "of candidates": held.bytes_on_disk, "MB of codes": codes / 1e6}


def _codes(segment):
    return [segment.shards[what] for what in segment.names]


def search_coded(folder, num_rows, form):
    """Its search; recall is of the neighbours by float32."""
    return _searched(folder, _find(OpenedIndex.newest(folder / form)))


def build_approximate(folder, num_rows, engine):
    """The same, with the approximate search beside it, and its recall."""
    about = galleries.write_index(folder / engine, _gallery(folder, 0, num_rows), "model", engine=engine)
    return {"recall@10": about["recall_at_10"]}


def add(folder, num_rows, engine="index"):
    """1,000 items more."""
    galleries.add_items(folder / engine, _gallery(folder, num_rows, num_rows + CHANGED), "model")


def remove(folder, num_rows, engine="index"):
    """The same 1,000 gone."""
    galleries.remove_items(folder / engine, [str(i) for i in range(num_rows, num_rows + CHANGED)])


def search(folder, num_rows):
    """The exact search of the index that items came into and left."""
    return _searched(folder, _find(OpenedIndex.newest(folder / "index")))


def search_where(folder, num_rows):
    """The exact search of a tenth of them."""
    return _searched(folder, _find(OpenedIndex.newest(folder / "index"), where=WHERE), "exact_where.npy")


def search_approximate(folder, num_rows, engine):
    """The approximate search."""
    return _searched(folder, _find(OpenedIndex.newest(folder / engine), approximate=True))


def search_approximate_where(folder, num_rows, engine):
    """The same of a tenth of the items."""
    find = _find(OpenedIndex.newest(folder / engine), approximate=True, where=WHERE)
    return _searched(folder, find, "exact_where.npy")


def _find(opened, **options):
    return lambda queries: [[int(hit["id"]) for hit in hits] for hits in opened.find(queries, K, **options)]


def search_faiss(folder, num_rows, kind="Flat"):
    """An index of FAISS that reads all items."""
    import faiss

    index, vectors = faiss.index_factory(WIDTH, kind, faiss.METRIC_INNER_PRODUCT), np.load(folder / "vectors.npy", "r")
    index.train(np.ascontiguousarray(vectors[: min(num_rows, 100_000)]))
    index.add(vectors[:num_rows])
    found = _searched(folder, lambda queries: index.search(queries, K)[1].tolist())
    return {**found, "bytes of an item": index.sa_code_size()}


EXACT = {
    "make": make, "build": build, "add 1,000": add, "remove 1,000": remove, "search: FAISS flat": search_faiss,
    "search: FAISS SQ8": functools.partial(search_faiss, kind="SQ8"),
    "search: FAISS SQ4": functools.partial(search_faiss, kind="SQ4"), "search: exact": search,
    "search: exact, where": search_where,
}  # fmt: skip
FORMS = ["float16", "int8", "int4", "binary", "binary+int8", "binary+int8x8", "int4+int8"]


def coded(form: str) -> dict:
    """What is done with one form."""
    return {
        f"build, {form}": functools.partial(build_coded, form=form),
        f"search: {form}": functools.partial(search_coded, form=form),
    }


def approximate(engine: str) -> dict:
    """What is done with one engine."""
    steps = {
        f"build, {engine}": build_approximate,
        f"add 1,000, {engine}": add,
        f"remove 1,000, {engine}": remove,
        f"search: {engine}": search_approximate,
    }
    if engine != "usearch":  # which has no filter
        steps[f"search: {engine}, where"] = search_approximate_where
    return {name: functools.partial(step, engine=engine) for name, step in steps.items()}


STEPS = {
    **EXACT,
    **{name: step for form in FORMS for name, step in coded(form).items()},
    **approximate("faiss"),
    **approximate("lancedb"),
    **approximate("usearch"),
}


def _gallery(folder, start, stop):
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")[start:stop]
    ids = [str(i) for i in range(start, stop)]
    return Gallery.of(np.ascontiguousarray(vectors), ids, part=np.arange(start, stop) % GROUPS)


def _searched(folder, find, answers="exact.npy") -> dict:
    """Milliseconds of all queries at once, and of one, medians of five, and the share of exact answers found."""
    queries, exact = np.array(np.load(folder / "vectors.npy", mmap_mode="r")[-QUERIES:]), np.load(folder / answers)
    variants = {"all": lambda: find(queries), "one": lambda: find(queries[:1])}
    times = common.interleaved(variants, repeats=5)
    kept = np.mean([len(set(a) & set(b)) / K for a, b in zip(find(queries), exact.tolist(), strict=True)])
    return {"ms of 100": times["all"]["ms"], "ms of 1": times["one"]["ms"], "recall@10": float(kept)}


if __name__ == "__main__":
    from xbm_keras.index import galleries
    from xbm_keras.index.coded_search import SearchForm
    from xbm_keras.index.gallery import Gallery
    from xbm_keras.index.opened_index import OpenedIndex

    main()
