"""KerasTuner's search loop around our trials: in one process, or with a chief that hands them to workers."""

import concurrent.futures
import contextlib
import gc
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import grpc
import keras
import keras_tuner
from keras_tuner.engine.trial import Trial
from keras_tuner.src import config as keras_tuner_config
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.engine import conditions

from xbm_keras.config.yaml_files import ConfigError
from xbm_keras.tuning.hypermodel import HeadHyperModel
from xbm_keras.tuning.local_workers import LocalWorkers
from xbm_keras.tuning.oracles import QUERY_SCORES, REASON, RandomOracle, ResumableOracle

log = logging.getLogger("xbm_keras.tuning")
HEARTBEAT_SECONDS = 5
WORKER_TIMEOUT_SECONDS = 60  # without a sign of life, after which a worker's trial is given to another
IDLE_SECONDS = 0.3
MAX_CHARACTERS = 3_000_000  # of the scores of queries; a message of gRPC takes 4 MB. Longer ones are not told
MAX_WAIT_SECONDS = 3600  # of a chief without workers; KerasTuner's workers wait as long for a chief


class SearchError(RuntimeError):
    """A search that stopped early, and why."""


class HeadTuner(keras_tuner.Tuner):
    """Runs trials without writing checkpoints: any of them takes seconds to train again.

    Args:
        oracle: chooses the trials.
        hypermodel: what is tuned.
        directory: of the oracle's state, from which a search goes on; a worker has none.
    """

    def __init__(self, oracle: ResumableOracle, hypermodel: HeadHyperModel, directory: str = "."):
        keras_tuner_config.DEBUG = False  # else the traceback of each failed trial is printed; it is in the state too
        vars(conditions)["print"] = lambda *values: None  # it prints each condition that goes to a worker
        super().__init__(oracle, hypermodel, directory=directory, project_name="keras_tuner")
        if not self._is_worker() and oracle.path.exists():
            oracle.reload()

    def _populate_initial_space(self):
        """Only declare it: KerasTuner would build a model for each condition of the space. A worker has the chief's."""
        if self._is_worker():
            return
        hp = keras_tuner.HyperParameters()
        self.hypermodel.declare_hyperparameters(hp)
        self.oracle.update_space(hp)

    def pre_create_trial(self):
        """A moment's rest, where the answer may be to ask again."""
        if self._is_worker():
            time.sleep(IDLE_SECONDS)

    def run_trial(self, trial: Trial, *args, **kwargs):
        """Build and fit; what the trial before left behind is cleared away first."""
        keras.backend.clear_session()
        gc.collect()
        with _sign_of_life(self.oracle, trial) if self._is_worker() else contextlib.nullcontext():
            model = self.hypermodel.build(trial.hyperparameters)
            return self.hypermodel.fit(trial.hyperparameters, model)

    def on_trial_end(self, trial: Trial):
        """Report; what KerasTuner's protocol has no field for rides among the values.

        It is the reason of a failure, and the score of each query.
        """
        if self._is_worker() and trial.message:
            trial.hyperparameters.values[REASON] = trial.message
        scores = self.hypermodel.query_scores
        if scores and not trial.message and len(text := scores.to_text()) <= MAX_CHARACTERS:
            trial.hyperparameters.values[QUERY_SCORES] = text
        super().on_trial_end(trial)

    def save(self):
        """The oracle's state is all there is."""
        if not self._is_worker():
            self.oracle.save()


@contextlib.contextmanager
def _sign_of_life(oracle, trial: Trial) -> Iterator[None]:
    """Ask the chief for the trial now and then, so that it knows that the worker lives."""
    is_done = threading.Event()

    def ask():
        while not is_done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(grpc.RpcError):  # a chief that is away may come back
                oracle.get_trial(trial.trial_id)

    threading.Thread(target=ask, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()


def take_role(chief: str | None, worker: str | None, parallel: int = 1) -> str:
    """This process' part in a search, as KerasTuner's environment variables say it, which addresses given here set.

    Args:
        chief: HOST:PORT, at which this process is to hand out trials.
        worker: HOST:PORT of the chief whose trials it is to run.
        parallel: above 1 for a chief of workers on this machine alone, at a port of its own choice.

    Returns:
        "chief", "worker", or "alone".

    Raises:
        ConfigError: for more than one of these parts at once, or an address without a port.
    """
    if parallel > 1:
        if chief or worker or "KERASTUNER_ORACLE_IP" in os.environ:
            raise ConfigError(
                f"Received --parallel {parallel} for a chief or a worker; expected one or the other: --parallel for "
                "one machine, --chief and --worker, or KerasTuner's environment variables, for several."
            )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            chief = f"127.0.0.1:{free.getsockname()[1]}"
    address = chief or worker
    if address:
        ip, _, port = address.rpartition(":")
        if not ip or not port.isdigit() or (chief and worker):
            raise ConfigError(
                f"Received --chief {chief} and --worker {worker}; expected one of them, as HOST:PORT, such as "
                "--chief 0.0.0.0:5000 here and --worker <this machine>:5000 on the others."
            )
        name = "chief" if chief else f"worker-{socket.gethostname()}-{os.getpid()}"
        os.environ |= {"KERASTUNER_TUNER_ID": name, "KERASTUNER_ORACLE_IP": ip, "KERASTUNER_ORACLE_PORT": port}
    if "KERASTUNER_ORACLE_IP" not in os.environ:
        return "alone"
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"


def work(hypermodel: HeadHyperModel) -> None:
    """Run trials of the chief until it has no more."""
    with tempfile.TemporaryDirectory() as unused:
        oracle = RandomOracle(objective=hypermodel.objective, max_trials=1)  # stands in for the chief's
        HeadTuner(oracle, hypermodel, unused).search(verbose=0)


def serve(oracle: ResumableOracle, workers: LocalWorkers | None = None) -> None:
    """Hand out trials as the chief until all are done and each worker knows it.

    KerasTuner's own chief waits for ever for a worker that died.

    Args:
        oracle: chooses the trials.
        workers: of this machine; where the last of them has ended before the trials, so does the search.

    Raises:
        SearchError: after an hour without a worker.
    """
    oracle.worker_timeout = WORKER_TIMEOUT_SECONDS
    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=1))
    protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(oracle), server)
    server.add_insecure_port(address)
    server.start()
    log.info("The chief waits for workers at %s.", address)
    last_heard = time.monotonic()
    try:
        while not oracle.is_over():
            time.sleep(IDLE_SECONDS)
            ended = workers and workers.what_ended_all()
            if ended is not None and not oracle.is_over():
                raise SearchError(f"All workers ended before the search did. The first one's last lines:\n{ended}")
            last_heard = max([last_heard, *oracle.last_heard.values()])
            if time.monotonic() - last_heard > MAX_WAIT_SECONDS:
                raise SearchError(
                    f"No worker asked for a trial in {MAX_WAIT_SECONDS} seconds; start workers with --worker "
                    f"{address}, then this command again: it goes on where it stopped."
                )
    finally:
        server.stop(grace=5).wait()
