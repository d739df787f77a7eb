"""The feature cache written by the workers of a cluster is the one that this process would write."""

import errno
import os
import pathlib
import pickle
import signal
import threading
import time

import numpy as np
import PIL.Image
import psutil
import pytest

from tests.feature_cache.small import contents, small_backbone
from xbm_keras.data.arrays import ImageArray
from xbm_keras.data.sources import DataError, ImageFolder
from xbm_keras.feature_cache import cache, ray_extraction, shards
from xbm_keras.feature_cache.cache import compute_features
from xbm_keras.feature_cache.digests import find_digests
from xbm_keras.stages.backbone.frozen import Backbone

ITEMS, SHARD_ROWS, BATCH_SIZE = 70, 32, 2  # three shards, two of them of two blocks
CORRUPT = "class1/04.png"
# Ray Data warns of old settings of its own, such as `use_polars`, when it makes its own defaults.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray.data.context")


class Gated(ImageFolder):
    """Pictures from the position `shut` on wait until a file `go` is there, and tell which process waits for them."""

    def __init__(self, root, signs: pathlib.Path, shut: int):
        super().__init__(root)
        self.signs, self.shut = signs, shut

    def load(self, position):
        if position >= self.shut:
            (self.signs / f"{position}-{os.getpid()}").touch()
            while not (self.signs / "go").exists():
                time.sleep(0.02)
        return super().load(position)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(ITEMS):
        path = tmp_path / f"photos/class{i % 3}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8)).save(path)
    (tmp_path / "photos" / CORRUPT).write_bytes(b"no picture")
    return str(tmp_path / "photos")


@pytest.fixture
def compute(tmp_path, photos):
    def run(ray_workers=2, source=None, backbone=None, cache="cache", **options):
        source = source or ImageFolder(photos)
        options = {"batch_size": BATCH_SIZE, "shard_rows": SHARD_ROWS, **options}
        return compute_features(
            source, backbone or small_backbone(), str(tmp_path / cache), ray_workers=ray_workers, **options
        )

    return run


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason='needs the extra [ray]: pip install ".[ray]"')


@pytest.fixture(scope="module")
def cluster(ray):
    """Three machines, as Ray sees it, of one core each; the driver is on a fourth without any."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def assert_same_caches(tmp_path, photos, result):
    """As the local path writes it: the same files and listings, and features up to float tolerance."""
    local = compute_features(
        ImageFolder(photos), small_backbone(), str(tmp_path / "local"), batch_size=BATCH_SIZE, shard_rows=SHARD_ROWS
    )
    assert result.skipped == local.skipped == {CORRUPT: "no picture of a known format"}
    np.testing.assert_array_equal(result.positions, local.positions)
    np.testing.assert_allclose(result.rows, local.rows, rtol=1e-5, atol=1e-4)
    ours, theirs = contents(tmp_path / "cache"), contents(tmp_path / "local")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name.endswith(".json"))


@pytest.mark.slow
def test_a_cluster_writes_the_same_cache(cluster, compute, tmp_path, photos):
    result = compute()
    assert result.num_computed == ITEMS
    assert_same_caches(tmp_path, photos, result)
    assert compute().num_computed == compute(0).num_computed == 0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["process", "machine"])
def test_a_worker_killed_midway_changes_nothing(cluster, compute, tmp_path, photos, loss):
    signs = tmp_path / "signs"
    signs.mkdir()
    lost = []

    def strike():
        """Kill the first worker that waits, or its whole machine; then let the others pass."""
        while not (waiting := list(signs.iterdir())):
            time.sleep(0.02)
        position, pid = map(int, waiting[0].name.split("-"))
        if loss == "process":
            os.kill(pid, signal.SIGKILL)
        else:
            raylet = psutil.Process(pid).ppid()
            cluster.remove_node(next(n for n in cluster.worker_nodes if raylet in raylets(n)), allow_graceful=False)
        lost.append((position, pid))
        (signs / "go").touch()

    thread = threading.Thread(target=strike)
    thread.start()
    result = compute(source=Gated(photos, signs, shut=40))
    thread.join()
    ((position, pid),) = lost
    assert {int(path.name.split("-")[1]) for path in signs.glob(f"{position}-*")} > {pid}  # another did its work
    assert_same_caches(tmp_path, photos, result)


def raylets(node) -> list[int]:
    return [info.process.pid for info in node.all_processes["raylet"]]


@pytest.mark.slow
def test_a_killed_driver_goes_on_after_the_last_shard(cluster, compute, tmp_path, photos, monkeypatch):
    write = shards.write_whole

    def dying(path, content):
        if path.name == "shard-00001.json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(shards, "write_whole", dying)
    with pytest.raises(KeyboardInterrupt):
        compute()
    monkeypatch.setattr(shards, "write_whole", write)
    result = compute()
    assert result.num_computed == ITEMS - SHARD_ROWS
    assert_same_caches(tmp_path, photos, result)


class Moody(ImageFolder):
    """Some pictures cannot be read as long as there is a file `sick`; the first one not even to hash it."""

    def __init__(self, root, sick: pathlib.Path):
        super().__init__(root)
        self.sick = sick

    def digest(self, position):
        if position == 0 and self.sick.exists():
            raise PermissionError(errno.EACCES, "Permission denied")
        return super().digest(position)

    def load(self, position):
        if position in (0, 3, 40) and self.sick.exists():
            raise OSError(errno.ESTALE, "Stale file handle")
        return super().load(position)


@pytest.mark.slow
def test_what_could_not_be_read_is_tried_again(cluster, compute, tmp_path, photos):
    keys = ImageFolder(photos).items.keys
    source = Moody(photos, tmp_path / "sick")
    find_digests(source, tmp_path / "cache")  # so that the first one is read for the network
    source.sick.touch()
    sick = compute(source=source)
    assert sick.skipped == {
        CORRUPT: "no picture of a known format",
        **dict.fromkeys(keys[[0, 3, 40]], "Stale file handle"),
    }
    source.sick.unlink()
    well = compute(source=source)
    assert well.num_computed == 3
    assert well.skipped == {CORRUPT: "no picture of a known format"}
    np.testing.assert_allclose(well.rows, compute(0, cache="plain").rows, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_workers_that_see_other_data_are_an_error(cluster, compute, tmp_path, photos):
    class Elsewhere(ImageFolder):
        def __reduce__(self):
            return ImageFolder, (str(tmp_path / "elsewhere"),)

    other = tmp_path / "elsewhere/class0/00.png"
    other.parent.mkdir(parents=True)
    PIL.Image.new("RGB", (9, 9), "red").save(other)
    with pytest.raises(
        DataError, match=r"ray_workers 2, which failed.*class0/00\.png is another item on that machine.*same paths"
    ):
        compute(source=Elsewhere(photos))
    assert_same_caches(tmp_path, photos, compute())  # nothing of it was kept


def test_a_cluster_that_is_not_there_is_an_error(ray, compute, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DataError, match=r"RAY_ADDRESS '127\.0\.0\.1:1'.*refused.*such as host:6379"):
        compute()


def test_without_ray_the_extra_is_named(compute, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(ray_extraction.importlib, "import_module", missing)
    with pytest.raises(DataError, match=r"cache\.ray_workers 2, .*pip install \"\.\[ray\]\".*cache\.ray_workers=0"):
        compute()


def test_a_packed_backbone_is_small_and_the_same(tmp_path):
    backbone = small_backbone()
    again = pickle.loads(pickle.dumps(ray_extraction._pack(backbone)))()
    assert cache.fingerprint(again) == cache.fingerprint(backbone)
    backbone.network.export(tmp_path / "saved_model", verbose=False)
    by_path = Backbone.from_file(str(tmp_path / "saved_model"), "MobileNetV2", (8, 8), "max", endpoint="serve")
    packed = pickle.dumps(ray_extraction._pack(by_path))
    assert len(packed) < 1000
    assert cache.fingerprint(pickle.loads(packed)()) == cache.fingerprint(by_path)


def test_a_shipped_array_is_its_path(tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (50, 20, 20), np.uint8))
    source = ImageArray(str(tmp_path / "images.npy"), invert=True)
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).load(7), source.load(7))
