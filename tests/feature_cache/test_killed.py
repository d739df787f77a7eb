"""Runs that are killed, and processes that share a cache: what they leave is what one undisturbed run leaves."""

import signal
import time

import pytest

from tests.feature_cache.small import Moody, compute_slowly, contents, die_while_hashing, share, small_backbone, start
from xbm_keras import atomic_files
from xbm_keras.data.sources import ImageFolder
from xbm_keras.feature_cache.cache import compute_features


def test_a_killed_run_goes_on_and_ends_byte_identical(compute, tmp_path, monkeypatch):
    (tmp_path / "photos/class1/05.png").write_bytes(b"no picture")
    compute()
    undisturbed = contents(tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "undisturbed")
    sync = atomic_files.sync

    for allowed in range(6):  # die before each of the files in turn, leaving half of it on the side

        def dying(path, calls=[allowed]):  # noqa: B006
            if path.is_file() and not calls[0]:
                path.with_name(f"{atomic_files.PREFIX}half.npy").write_bytes(b"half a file")
                raise KeyboardInterrupt
            calls[0] -= path.is_file()
            sync(path)

        monkeypatch.setattr(atomic_files, "sync", dying)
        with pytest.raises(KeyboardInterrupt):
            compute()
        monkeypatch.setattr(atomic_files, "sync", sync)
        assert compute().num_computed > 0
        assert contents(tmp_path / "cache") == undisturbed
        (tmp_path / "cache").rename(tmp_path / f"died after {allowed}")


def test_kill_9_and_the_next_run_ends_byte_identical(many_photos, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    victim = start(tmp_path / "errors", compute_slowly, many_photos, killed)
    while not list(killed.glob("*/shard-00002.json")):
        assert victim.poll() is None, (tmp_path / "errors").read_text()
        time.sleep(0.01)
    victim.kill()  # SIGKILL
    victim.wait()
    assert 3 <= len(list(killed.glob("*/shard-*.json"))) < 10
    for folder in (undisturbed, killed):
        compute_features(ImageFolder(str(many_photos)), small_backbone(), str(folder), shard_rows=16, batch_size=4)
    assert contents(killed) == contents(undisturbed)
    assert len(list(undisturbed.glob("*/shard-*.npy"))) == 10


def test_a_killed_hashing_pass_goes_on(many_photos, tmp_path):
    victim = start(tmp_path / "errors", die_while_hashing, many_photos, tmp_path / "cache")
    assert victim.wait() == -signal.SIGKILL, (tmp_path / "errors").read_text()
    source = Moody(str(many_photos), OSError())
    compute_features(source, small_backbone(), str(tmp_path / "cache"))
    assert 10 <= source.num_hashed <= 160 - 80  # of 64 that were ahead of their use nothing is known


def test_an_interrupted_hashing_pass_goes_on(photos, tmp_path):
    source = Moody(str(photos), KeyboardInterrupt())
    source.no_digest = [8]
    with pytest.raises(KeyboardInterrupt):
        compute_features(source, small_backbone(), str(tmp_path / "cache"))
    source.no_digest, source.num_hashed = [], 0
    compute_features(source, small_backbone(), str(tmp_path / "cache"))
    assert source.num_hashed == 3


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_two_processes_share_a_cold_cache(photos, tmp_path, rounds):
    cache = tmp_path / "shared"
    cache.mkdir()
    other = start(tmp_path / "errors", share, photos, cache, "01", "10", rounds)
    try:
        share(str(photos), cache, "10", "01", rounds, lambda: other.poll() in (None, 0))
    finally:
        if other.poll() is None and not (cache / f"10-{rounds - 1}").exists():  # it waits in vain
            other.kill()
        other.wait()
    assert other.returncode == 0, (tmp_path / "errors").read_text()
    for seed in (0, 1):
        compute_features(ImageFolder(str(photos)), small_backbone(seed), str(tmp_path / "alone"), shard_rows=4)
    assert contents(cache / "round0") == contents(cache / f"round{rounds - 1}") == contents(tmp_path / "alone")
    assert not list(tmp_path.rglob(f"{atomic_files.PREFIX}*"))
