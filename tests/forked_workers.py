"""A worker of pytest-xdist runs its tests in a fork of itself, and in another one when that has grown.

What XLA compiles is kept as long as its process lives, some 2 MB a function: a worker that ran half of the suite would
grow to 5 GB. The worker itself imports and collects, a fork of it starts at once and without an import. So nothing
looks for garbage, which the end of a fork takes along: to do so took a tenth of the tests of the model.
"""

import gc
import multiprocessing
import os
import pathlib
import traceback

import pytest

from tests.fresh_processes import fork

LIMIT = 900 << 20  # bytes of a fork after which the next test file gets another one; no file takes 800 MB


def resident() -> int:
    """Bytes of this process in main memory."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class ForkedTests:
    """The plugin of a worker: tests go to its fork one by one, their reports come back."""

    def __init__(self):
        self.fork = None

    def pytest_collectreport(self, report):
        from tensorflow.python.eager import context  # not in the process that hands out the tests

        if context.context()._context_handle is not None:
            raise RuntimeError(
                f"{report.nodeid} made a tensor while it was imported; expected none before the first test, since the "
                "threads that TensorFlow starts for it are missing in a fork. Make it in a fixture or a function."
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        self.fork = self.fork or Fork(item.session, self)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports, is_last = self.fork.run(item, nextitem)
        for report in reports:
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=report)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if is_last:
            os.waitpid(self.fork.pid, 0)
            self.fork = None
        return True


class Fork:
    """A child process that knows all tests. One that dies takes the worker along, which xdist reports."""

    def __init__(self, session, parent: ForkedTests):
        self.pipe, other = multiprocessing.Pipe()
        gc.collect()
        gc.freeze()  # else each collection would write to, and so copy, the pages that both share
        self.pid = fork()
        if self.pid == 0:
            try:
                self.pipe.close()
                _serve(session, other, parent)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        other.close()

    def run(self, item, nextitem) -> tuple[list, bool]:
        try:
            self.pipe.send((item.nodeid, nextitem and nextitem.nodeid))
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            os._exit(1)


class _Reports:
    def __init__(self, config):
        self.config, self.of_test = config, []

    def pytest_runtest_logreport(self, report):
        self.of_test.append(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))


def _serve(session, pipe, parent: ForkedTests) -> None:
    """Run tests until the last one, or until this process has grown and a file ends."""
    plugins = session.config.pluginmanager
    for plugin in [
        parent,
        *(p for p in plugins.get_plugins() if hasattr(p, "channel")),
    ]:  # xdist's reports, in the worker
        plugins.unregister(plugin)
    reports = _Reports(session.config)
    plugins.register(reports)
    items = {item.nodeid: item for item in session.items}
    is_last = False
    while not is_last:
        item, nextitem = (items.get(name) for name in pipe.recv())
        if nextitem is None or (nextitem.path != item.path and resident() > LIMIT):
            is_last, nextitem = True, None
        reports.of_test.clear()
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        pipe.send((reports.of_test, is_last))
