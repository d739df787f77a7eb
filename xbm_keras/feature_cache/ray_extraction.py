"""Backbone outputs computed by the workers of a Ray cluster; the cache is written by the driver, as on one machine.

The driver cuts each shard into blocks of some batches and takes the features back in order. A worker is an actor that
holds the source and the backbone. One that dies is started again, elsewhere if need be, and its blocks are done again.
"""

import contextlib
import functools
import importlib
import itertools
import logging
import math
import os
import pathlib
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import pyarrow as pa

from xbm_keras.data.sources import DataError, Source, UnreadableItem
from xbm_keras.feature_cache.extraction import compute_batches, default_batch_size
from xbm_keras.stages.backbone.frozen import Backbone
from xbm_keras.stages.backbone.hub import HubBackbone

# A checkout that is not installed, on shared storage.
PYTHONPATH = os.pathsep.join(filter(None, [str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
BATCHES_PER_BLOCK = 8  # much less than a shard: all workers have something to do, and little is lost with one


def engine(
    source: Source,
    backbone: Backbone,
    batch_size: int | None,
    num_workers: int,
    fingerprint: Callable[[Backbone], str],
) -> Callable[[Sequence[Sequence[int]]], Iterator[list[np.ndarray | UnreadableItem]]]:
    """A function like `compute_batches` that computes on the cluster at RAY_ADDRESS, or on a new one on this machine.

    Args:
        source: the items, which the workers must reach under the same paths; it is pickled.
        backbone: the frozen network; a SavedModel must be reached under the same path, others are sent along.
        batch_size: items per call of the network; None for what suits a CPU or a GPU.
        num_workers: at most so many actors; each takes a CPU and, where the cluster has some, (part of) a GPU.
        fingerprint: what must be the same for a worker's backbone.

    Raises:
        DataError: where Ray is not installed.
    """
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise DataError(
            f"Received cache.ray_workers {num_workers}, and Ray Data cannot be imported ({error}); expected the extra "
            '[ray]. Install it with: pip install ".[ray]", or use cache.ray_workers=0.'
        ) from error
    return functools.partial(_compute, ray, source, backbone, batch_size, num_workers, fingerprint)


def _compute(ray, source, backbone, batch_size, num_workers, fingerprint, shards) -> Iterator[list]:
    with _cluster(ray):
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        batch_size = batch_size or default_batch_size(num_gpus > 0)
        size = BATCHES_PER_BLOCK * batch_size
        blocks = [shard[start : start + size] for shard in shards for start in range(0, len(shard), size)]
        shipped = {
            "source": source,
            "backbone": _pack(backbone),
            "batch_size": batch_size,
            "fingerprint": fingerprint,
            "expected": (fingerprint(backbone), *_witness(source, itertools.chain.from_iterable(blocks))),
        }
        dataset = ray.data.from_arrow([pa.table({"position": block}) for block in blocks]).map_batches(
            _Worker,
            batch_size=None,  # a block
            batch_format="pyarrow",
            # Not all of them at any price: one that lost its machine takes the place of one that has nothing to do.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers),
            fn_constructor_args=(os.getcwd(), ray.put(shipped)),
            runtime_env={"env_vars": {"PYTHONPATH": PYTHONPATH}},
            num_cpus=1,
            num_gpus=1 / math.ceil(num_workers / num_gpus) if num_gpus else 0,
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        positions = itertools.chain.from_iterable(blocks)
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if table["position"].to_pylist() != list(itertools.islice(positions, len(table))):
                    raise RuntimeError("Ray Data returned blocks in another order than they were given.")
                yield [
                    np.frombuffer(row, np.float32) if row is not None else UnreadableItem(problem, is_lasting)
                    for row, problem, is_lasting in zip(
                        *(table[name].to_pylist() for name in ("row", "problem", "is_lasting")), strict=True
                    )
                ]
        except ray.exceptions.RayError as error:
            reason = next(line for line in reversed(str(error).splitlines()) if line.strip())
            raise DataError(
                f"Received cache.ray_workers {num_workers}, which failed: {reason}. Expected workers that have this "
                "version of the package and reach data and backbone under the same paths. Mend that and run the same "
                "command again, which goes on after the finished shards, or use cache.ray_workers=0."
            ) from error


@contextlib.contextmanager
def _cluster(ray) -> Iterator[None]:
    """The cluster this process is connected to already; else the one that Ray finds, or starts, and leaves again."""
    logging.getLogger("ray.data").setLevel("CRITICAL")  # its plans and statistics; the progress bar is ours
    if ray.is_initialized():
        yield
        return
    try:
        host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
        if port.isdecimal() and "//" not in host:  # Ray itself tries for many minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"Received RAY_ADDRESS {os.environ.get('RAY_ADDRESS', '')!r}, where no Ray cluster can be reached or "
            f"started: {error}. Expected the address of a running one, such as host:6379; without RAY_ADDRESS Ray "
            "starts one on this machine."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _pack(backbone: Backbone) -> Callable[[], Backbone]:
    """A small function that makes the backbone again in another process."""
    if isinstance(backbone, HubBackbone):
        if backbone.remake is None:
            raise DataError(
                "Received cache.ray_workers with a keras_hub backbone made from objects, which cannot be sent to "
                "workers; expected one that HubBackbone.from_preset made. Use a preset, or cache.ray_workers=0."
            )
        return backbone.remake
    if backbone.is_saved_model:
        options = {name: getattr(backbone, name) for name in ("preprocessing", "image_size", "pooling")}
        network = backbone.network
        return functools.partial(Backbone.from_file, network.filepath, endpoint=network.call_endpoint, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "backbone.keras"
        keras.saving.save_model(backbone, path)
        return functools.partial(_unpack, path.read_bytes())


def _unpack(data: bytes) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "backbone.keras"
        path.write_bytes(data)
        # The driver made it from objects in its memory; who may send actors may run code anyway.
        return keras.saving.load_model(path, safe_mode=False)


def _witness(source: Source, positions: Iterable[int]) -> tuple[int | None, str]:
    """The first of the items that can be read here, and its content hash, by which a worker tells its data."""
    for position in positions:
        with contextlib.suppress(UnreadableItem, OSError):
            return position, source.digest(position)
    return None, ""


class _Worker:
    """An actor that computes blocks, one after the other."""

    def __init__(self, folder, shipped):
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # workers, and the driver, may share a GPU
        with contextlib.suppress(FileNotFoundError):
            os.chdir(folder)  # so that relative paths mean the same
        shipped = importlib.import_module("ray").get(shipped)
        self.source, self.backbone = shipped["source"], shipped["backbone"]()
        self.network = self.backbone.as_function()
        self.batch_size = shipped["batch_size"]
        fingerprint, position, digest = shipped["expected"]
        if shipped["fingerprint"](self.backbone) != fingerprint:
            raise DataError("the backbone is another one on that machine")
        if position is None:
            return
        key = self.source.items.keys[position]
        try:
            found = self.source.digest(position)
        except (UnreadableItem, OSError) as error:  # else the run would lose all items that this machine cannot reach
            raise DataError(f"{key}: {error}") from error
        if found != digest:
            raise DataError(f"{key} is another item on that machine")

    def __call__(self, block: pa.Table) -> pa.Table:
        """Positions [n] to as many rows (bytes of float32 [D]) or problems (str)."""
        positions = block["position"].to_pylist()
        batches = compute_batches(self.source, self.network, self.backbone.prepare, [positions], self.batch_size)
        outcomes = itertools.chain.from_iterable(batches)
        pairs = [(None, o) if isinstance(o, UnreadableItem) else (o.tobytes(), None) for o in outcomes]
        return pa.table(
            {
                "position": block["position"],
                "row": pa.array([row for row, _ in pairs], pa.large_binary()),
                "problem": pa.array([problem and str(problem) for _, problem in pairs], pa.string()),
                "is_lasting": pa.array([problem and problem.is_lasting for _, problem in pairs], pa.bool_()),
            }
        )
