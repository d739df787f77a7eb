"""Workers of a search on this machine, beside its chief: small trials use one core each far better than all of them."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator, Sequence

NUM_LAST_LINES = 5


class LocalWorkers:
    """Processes that run trials of the chief in this one.

    Args:
        command: that starts a worker.
        count: how many.
        folder: of what they print, a file each.
    """

    def __init__(self, command: Sequence[str], count: int, folder: pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"worker_{number}.log" for number in range(count)]
        threads = str(max(1, (os.cpu_count() or 1) // count))
        environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}
        self.processes = []
        for path in self.logs:
            with path.open("w") as file:
                self.processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))

    def what_ended_all(self) -> str | None:
        """The last lines of a worker, where none is left; else None."""
        if any(process.poll() is None for process in self.processes):
            return None
        lines = self.logs[0].read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-NUM_LAST_LINES:])

    def stop(self) -> None:
        """End those that still run."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


@contextlib.contextmanager
def local_workers(command: Sequence[str], count: int, folder: pathlib.Path) -> Iterator[LocalWorkers | None]:
    """Workers that live no longer than the block; None for a count of 1, which needs none beside this process.

    Args:
        command: of this process, which `take_role` made the chief.
        count: how many.
        folder: of what they print.
    """
    if count == 1:
        yield None
        return
    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    workers = LocalWorkers([*command, "--parallel", "1", "--worker", address], count, folder)
    try:
        yield workers
    finally:
        workers.stop()
