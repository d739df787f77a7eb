"""Workers on one machine: what they run, and that none outlives its search."""

import sys

import pytest

from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.tuning import local_workers, take_role
from xbm_keras.tuning.tuner import SearchError, serve

PRINT_AND_WAIT = "import os, sys, time; print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:], flush=True); time.sleep(60)"


@pytest.fixture
def chief(monkeypatch):
    for name in ("TUNER_ID", "ORACLE_IP", "ORACLE_PORT"):
        monkeypatch.setenv(f"KERASTUNER_{name}", "")
        monkeypatch.delenv(f"KERASTUNER_{name}")  # what take_role sets is taken back, too
    assert take_role(None, None, parallel=2) == "chief"


def wait_for_lines(workers):
    while not all(log.read_text() for log in workers.logs):
        assert workers.what_ended_all() is None


@pytest.mark.usefixtures("chief")
def test_workers_share_the_cores_and_end_with_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    with local_workers([sys.executable, "-c", PRINT_AND_WAIT, "--set", "a=1"], 2, tmp_path / "logs") as workers:
        wait_for_lines(workers)
        words = [log.read_text().split() for log in workers.logs]
    assert [w[:5] for w in words] == [["3", "--set", "a=1", "--parallel", "1"]] * 2
    assert words[0][5] == "--worker"
    assert words[0][6].startswith("127.0.0.1:")
    assert all(process.poll() is not None for process in workers.processes)


def test_one_at_a_time_needs_no_worker(tmp_path):
    with local_workers(["does-not-exist"], 1, tmp_path / "logs") as workers:
        assert workers is None
    assert not (tmp_path / "logs").exists()


class NeverOver:
    """An oracle whose trials nobody runs."""

    last_heard: dict = {}  # noqa: RUF012

    def is_over(self):
        return False


@pytest.mark.usefixtures("chief")
def test_a_search_whose_workers_all_failed_ends_with_their_words(tmp_path):
    fails = [sys.executable, "-c", "raise SystemExit('no such data')"]
    expected = r"(?s)All workers ended before the search did.*no such data"
    with local_workers(fails, 2, tmp_path) as workers, pytest.raises(SearchError, match=expected):
        serve(NeverOver(), workers)


@pytest.mark.parametrize("role", [("h:1", None), (None, "h:1")])
def test_parallel_is_for_one_machine(role):
    with pytest.raises(ConfigError, match="--parallel 2 for a chief or a worker; expected one or the other"):
        take_role(*role, parallel=2)
