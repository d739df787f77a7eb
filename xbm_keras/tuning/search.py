"""A search in a folder: what it writes, says, and goes on from."""

import json
import logging
import pathlib
import shutil
import time
from typing import Any

import pandas as pd
import rich.box
import rich.console
import rich.table
import yaml
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.errors import FailedTrialError

from xbm_keras.atomic_files import DAY, remove_leftovers, write_whole
from xbm_keras.config.schema import Config
from xbm_keras.config.search_schema import Dimension
from xbm_keras.config.yaml_files import ConfigError, check_config, save_config, to_yaml
from xbm_keras.evaluation.wording import PROTOCOLS, SCORES, shown
from xbm_keras.report.failures import REPORT_ERROR, kept_in
from xbm_keras.report.page import write_page
from xbm_keras.tuning.hypermodel import HeadHyperModel
from xbm_keras.tuning.local_workers import LocalWorkers
from xbm_keras.tuning.oracles import HyperbandOracle, make_oracle, reason_of
from xbm_keras.tuning.page import Axis, Findings, search_page, verdict
from xbm_keras.tuning.query_scores import QueryScores
from xbm_keras.tuning.space import overridden, own_value, to_overrides, trial_values
from xbm_keras.tuning.tuner import HeadTuner, SearchError, serve

log = logging.getLogger("xbm_keras.tuning")
QUERIES = "_queries.json"  # the score of each query, beside the config of a trial
LEFT = ("search.yaml", "trials", "trials.csv", "keras_tuner", "workers", "default", "best", "best.yaml", "search.html")


class HeadSearch:
    """Trials of a hypermodel, kept in a folder. The same arguments go on where an earlier process stopped.

    Writes `search.yaml` (what is searched), `trials/<number>.yaml` (configs for train.py) with the scores of each query
    in `trials/<number>_queries.json`, `trials.csv`, `best.yaml`, and `keras_tuner/` (the oracle's state).

    Args:
        hypermodel: what is tuned.
        workdir: the folder.
        tuner: "bayesian", "hyperband", "random" or "grid".
        max_trials: how many in all; more than before goes on.
        resume: "auto" goes on with a search that is in the folder, "must" refuses to begin a new one, "never" to go on:
            it starts an unfinished one anew.

    Raises:
        ConfigError: where the folder holds a search of something else, a finished one with "never", none with "must".
    """

    def __init__(
        self, hypermodel: HeadHyperModel, workdir: pathlib.Path, tuner: str, max_trials: int, resume: str = "auto"
    ):
        self.hypermodel = hypermodel
        self.workdir = workdir
        self.kind = tuner
        self.max_trials = max_trials
        config = hypermodel.config
        self.oracle = make_oracle(tuner, hypermodel.objective, max_trials, config.training.epochs, config.training.seed)
        self._claim_folder(tuner, resume)
        self.oracle.journal = self
        self.tuner = HeadTuner(self.oracle, hypermodel, str(workdir))
        self.score = hypermodel.objective.name
        self.default: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._seconds: list[float] = []

    def _claim_folder(self, tuner: str, resume: str) -> None:
        config = self.hypermodel.config
        space = {key: [d.model_dump(exclude_defaults=True) for d in ds] for key, ds in self.hypermodel.space.items()}
        about = {"tuner": tuner, **config.model_dump(mode="json")}
        about["search"] = {**config.search.model_dump(mode="json"), "space": space}
        file = self.workdir / "search.yaml"
        if resume == "must" and not file.exists():
            raise ConfigError(
                f"Received --resume=must with --workdir {self.workdir}, which holds no search; leave --resume out to "
                "start one."
            )
        if resume == "never":
            self._remove_old()
        if file.exists() and _as_now(yaml.safe_load(file.read_text("utf-8")), file) != _as_now(about, file):
            raise ConfigError(
                f"Received --workdir {self.workdir}, which holds a search of another config, space or tuner; to go on "
                f"with that one give the same as in {file}, else another folder, or start anew with --resume=never."
            )
        try:
            (self.workdir / "trials").mkdir(parents=True, exist_ok=True)
            for each in (self.workdir, self.workdir / "trials", self.workdir / "keras_tuner"):
                remove_leftovers(each, older_than=DAY)
            write_whole(file, yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise ConfigError(f"Received --workdir {self.workdir}, which cannot be written: {error}") from error

    def _remove_old(self) -> None:
        """What an unfinished search left."""
        if (self.workdir / "best" / "metrics.json").exists():
            raise ConfigError(
                f"Received --resume=never with --workdir {self.workdir}, which holds a finished search; give another "
                "folder, or remove it. (Without --resume=never a larger --max_trials goes on with it.)"
            )
        for name in (*LEFT, REPORT_ERROR):
            path = self.workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def run(self, is_chief: bool = False, workers: LocalWorkers | None = None) -> None:
        """Run what remains of the trials, here or, as a chief, by workers.

        Args:
            is_chief: whether workers run the trials.
            workers: those of this machine, where it has some.

        Raises:
            SearchError: after several failed trials in a row, with their reasons.
        """
        if isinstance(self.oracle, HyperbandOracle):
            rungs = ", ".join(map(str, self.oracle.rungs()))
            log.info(
                "Hyperband: %d trials, of %s epochs; a whole sweep takes %d.",
                self.max_trials,
                rungs,
                self.oracle.trials_per_iteration(),
            )
        self.default = self._score_default()
        log.info("The config as it is: validation %s %.4f.", SCORES[self.score][0], self.default[self.score])
        ours = logging.getLogger("xbm_keras")
        level = ours.level
        ours.setLevel(logging.WARNING)  # what each run says would be said in each trial
        log.setLevel(logging.INFO)
        try:
            serve(self.oracle, workers) if is_chief else self.tuner.search(verbose=0)
        finally:
            ours.setLevel(level)
        self._write_results()
        self.write_page()
        if self.oracle.stop_reason:
            raise SearchError(f"{self.oracle.stop_reason}\nThe same command goes on after them.")

    def _score_default(self) -> dict[str, float]:
        """Metrics of the config as it is, which the search is to beat. What is wrong with it ends the search here."""
        file = self._trial_file("default.json")
        if not file.exists():
            config = self.default_config()
            save_config(config, file.with_suffix(".yaml"))
            try:
                metrics = self.hypermodel.evaluate(config)
            except FailedTrialError as error:
                raise SearchError(f"Received a config that cannot be run as it is. {error}") from error
            if self.hypermodel.query_scores:
                write_whole(self._trial_file(f"default{QUERIES}"), self.hypermodel.query_scores.to_text())
            write_whole(file, json.dumps(metrics))
        return json.loads(file.read_text())

    def on_trial_begin(self, trial: Trial) -> None:
        """Write its config, before it runs."""
        self._began[trial.trial_id] = time.monotonic()
        write_whole(self._trial_file(f"{trial_number(trial)}.yaml"), to_yaml(self._nested(trial)))

    def on_query_scores(self, trial: Trial, text: str) -> None:
        """Keep the score of each of its queries."""
        write_whole(self._trial_file(f"{trial_number(trial)}{QUERIES}"), text)

    def on_trial_end(self, trial: Trial) -> None:
        """Write the table, and say how it went."""
        self._write_results()
        self._seconds.append(time.monotonic() - self._began.pop(trial.trial_id, time.monotonic()))
        num_done = len(self.oracle.end_order)
        left = (self.max_trials - num_done) * sum(self._seconds) / len(self._seconds)
        left /= max(1, len(self.oracle.ongoing_trials))
        best = self.best_trial()
        best_so_far = f"best {best.score:.4f} ({trial_number(best)})" if best else "none finished"
        result = f"{trial.score:.4f}" if trial.status == TrialStatus.COMPLETED else f"failed: {reason_of(trial)}"
        rest = f"{best_so_far}, default {self.default[self.score]:.4f}, {_minutes(left)} left"
        log.info("%s/%d  %s  %s  %s", num_done, self.max_trials, trial_number(trial), result, rest)

    def best_trial(self) -> Trial | None:
        """The finished trial with the best score, if there is any."""
        finished = [trial for trial in self.oracle.trials.values() if trial.status == TrialStatus.COMPLETED]
        return max(finished, key=lambda trial: trial.score, default=None)

    def interval(self) -> tuple[float, float] | None:
        """Of what the best trial is above the default; None where the score of each query is not known of both.

        Searches of earlier versions kept none.
        """
        best = self.best_trial()
        names = [trial_number(best), "default"] if best else []
        files = [self._trial_file(f"{name}{QUERIES}") for name in names]
        if not files or not all(file.exists() for file in files):
            return None
        trial, default = (QueryScores.from_text(file.read_text("utf-8")) for file in files)
        return trial.interval_above(default)

    def best_config(self) -> Config:
        """The config of the best trial; the default where no trial is better than it."""
        best = self.best_trial()
        is_better = best is not None and best.score > self.default[self.score]
        return check_config(self._nested(best), "best.yaml") if is_better else self.default_config()

    def default_config(self) -> Config:
        """The config as it is, without its search section."""
        return check_config(overridden(self.hypermodel.config, {}), "The config")

    def test_scores(self) -> dict[str, dict[str, float]]:
        """Of the test items by protocol, of "default" and "best", once train.py's steps made those folders."""
        files = {name: self.workdir / name / "metrics.json" for name in ("default", "best")}
        if not all(file.exists() for file in files.values()):
            return {}
        metrics = {name: json.loads(file.read_text()) for name, file in files.items()}
        scores = {}
        for protocol, title in PROTOCOLS.items():
            if protocol in metrics["best"]:
                metric = "neighbor_overlap_at_10" if protocol == "neighbors" else "map_at_r"
                metric = "ndcg_at_10" if protocol.startswith("pairs") else metric
                values = {name: each[protocol]["trained"][metric] for name, each in metrics.items()}
                scores[f"{shown(protocol)[metric]}, {title}"] = values
        return scores

    def write_page(self) -> None:
        """Write `search.html`; where it cannot be made, say why."""
        with kept_in(self.workdir, "The same command makes it anew."):
            write_page(self.workdir / "search.html", search_page(self._findings(), f"Search in {self._place}"))

    @property
    def _place(self) -> str:
        """The folder as it is told: no page tells whose home it is."""
        return self.workdir.name if self.workdir.is_absolute() else str(self.workdir)

    def _findings(self) -> Findings:
        space, config = self.hypermodel.space, self.hypermodel.config
        about = {"tuner": self.kind, "trials": str(len(self.oracle.trials)), "seed": str(config.training.seed)}
        default = {key: own_value(config, key) for key in space} | {self.score: self.default[self.score]}
        axes = {key: _axis(dimensions) for key, dimensions in space.items()}
        command = f"python train.py --config {self._place}/best.yaml"
        tests, interval = self.test_scores(), self.interval()
        return Findings(self.table(), axes, default, tests, command, about, self.score, interval)

    def print_results(self) -> None:
        """Default and best side by side, and where everything is."""
        console = rich.console.Console(highlight=False)
        best = self.best_trial()
        name = SCORES[self.score][0]
        name = name if name[1:2].isupper() else f"{name[0].upper()}{name[1:]}"
        title = f"{name} of the default and of the best of {len(self.oracle.trials)} trials"
        table = rich.table.Table(box=rich.box.SIMPLE, title=title, title_justify="left")
        tests = self.test_scores()
        for column in ("", "dimensions", "validation", *(f"test, {protocol}" for protocol in tests)):
            table.add_column(column, justify="right" if column else "left")
        for name, config in (("default", self.default_config()), ("best", self.best_config())):
            score = best.score if best and config != self.default_config() else self.default[self.score]
            numbers = [score, *(scores[name] for scores in tests.values())]
            table.add_row(name, str(config.head.embedding_dim), *(f"{number:.4f}" for number in numbers))
        console.print(table)
        console.print(verdict(self._findings()).text, soft_wrap=True)
        console.print(f"[bold]Page[/bold]    {self.workdir}/search.html", soft_wrap=True)
        console.print(f"[bold]Best[/bold]    {self.workdir}/best.yaml, {self.workdir}/best/", soft_wrap=True)
        console.print(f"[bold]Trials[/bold]  {self.workdir}/trials.csv, {self.workdir}/trials/", soft_wrap=True)

    def table(self) -> pd.DataFrame:
        """One row per trial: number, status, metrics, seconds, the values of all keys, and why it failed."""
        rows = [
            {
                "trial": trial_number(trial),
                "status": trial.status.lower(),
                **{name: trial.metrics.get_last_value(name) for name in trial.metrics.metrics},
                **to_overrides(self.hypermodel.space, trial.hyperparameters.values),
                "reason": reason_of(trial),
            }
            for trial in self.oracle.trials.values()
        ]
        frame = pd.DataFrame(rows, columns=None if rows else ["trial", "status", self.score, "reason"])
        return frame[[*frame.columns.drop("reason"), "reason"]]

    def _write_results(self) -> None:
        write_whole(self.workdir / "trials.csv", self.table().to_csv(index=False))
        save_config(self.best_config(), self.workdir / "best.yaml")

    def _trial_file(self, name: str) -> pathlib.Path:
        return self.workdir / "trials" / name

    def _nested(self, trial: Trial) -> dict[str, Any]:
        return trial_values(self.hypermodel.config, self.hypermodel.space, trial.hyperparameters.values)


def _as_now(about: Any, file: pathlib.Path) -> tuple[str, Config] | None:
    """What a search is of, in keys of today. Raises ConfigError where that cannot be said."""
    if not isinstance(about, dict):
        return None
    values = dict(about)
    return values.pop("tuner", None), check_config(values, str(file))


def _axis(dimensions: list[Dimension]) -> Axis:
    """Of a key; where conditions give it several sets of values, of all of them."""
    if any(dimension.values is None for dimension in dimensions):
        return Axis(None, any(dimension.log for dimension in dimensions))
    values = [value for dimension in dimensions for value in dimension.values or []]
    return Axis(list(dict.fromkeys(values)))


def trial_number(trial: Trial) -> str:
    """Four digits."""
    return f"{int(trial.trial_id):04d}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
