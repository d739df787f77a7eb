"""What a run on queries and documents writes that is another than by classes: `data.json` and the report."""

import hashlib
import json
import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from xbm_keras.atomic_files import write_whole
from xbm_keras.config.schema import Config
from xbm_keras.config.yaml_files import public_values
from xbm_keras.data.errors import DataError
from xbm_keras.data.labels import counted, printable
from xbm_keras.data.pair_dataset import PairDataset
from xbm_keras.evaluation.wording import is_better_on_held_out_queries
from xbm_keras.experiment import run_folder
from xbm_keras.experiment.pair_learning import learning_curve
from xbm_keras.experiment.run_facts import about_pairs
from xbm_keras.experiment.run_folder import read_record
from xbm_keras.export.model_card import as_yaml
from xbm_keras.model.xbm_model import XBMModel
from xbm_keras.report.failures import kept_in
from xbm_keras.report.pair_report import write_pair_report
from xbm_keras.report.run_report import AboutRun
from xbm_keras.report.stage_costs import Cost
from xbm_keras.stages.head.fc_layer import Head

log = logging.getLogger("xbm_keras")


def write_data(workdir: pathlib.Path, folds: Sequence[PairDataset]) -> None:
    """Write `data.json`: how many queries do what, what leaks from training into the test, what was left out and why.

    Raises:
        DataError: where an unfinished run in the folder was of other data.
    """
    dataset = folds[0]
    file, digest = workdir / "data.json", _digest(dataset)
    if file.exists() and read_record(file).get("digest") != digest:
        raise DataError(
            f"Received data that changed since the unfinished run in {workdir} began; expected the same queries, "
            "documents and judgements. Bring them back, or start anew with --resume=never."
        )
    splits, pairs = dataset.splits, dataset.pairs
    trained = np.union1d(splits.train, splits.validation)
    num_leaking = int((~dataset.is_unseen(splits.test, trained)).sum())
    about = {
        "queries": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        "documents": len(dataset.documents),
        "judgements": len(pairs.grade),
        "judged_irrelevant": int((pairs.grade <= 0).sum()),
        "documents_that_answer": len(np.unique(pairs.document[pairs.grade > 0])),
        "test_queries_with_documents_of_training": num_leaking,
        "in_no_part": len(pairs.queries.ids) - len(np.unique(np.concatenate([trained, splits.test]))),
        "ignored": pairs.ignored,
        "skipped": dataset.skipped,
        "read_for_backbone": dataset.num_computed,
        "digest": digest,
    }
    write_whole(file, printable(json.dumps(about, indent=1, ensure_ascii=False)))
    log.info(
        "%s queries train, %s choose, %s test; %s documents.",
        *(f"{number:,}" for number in (len(splits.train), len(splits.validation), len(splits.test))),
        f"{len(dataset.documents):,}",
    )
    if num_leaking:
        log.warning(
            "%d of %d test queries are answered by documents that answer training queries, too: what is learnt by "
            "heart helps them. The others are scored by themselves.",
            num_leaking,
            len(splits.test),
        )
    for what, count in pairs.ignored.items():
        log.warning("Left out: %d %s.", count, what)
    if dataset.skipped:
        log.warning("%s skipped; see data.json.", counted(len(dataset.skipped), "text"))


def export_model(workdir: pathlib.Path, model: XBMModel, config: Config, metrics: dict) -> pathlib.Path | None:
    """Write the next `export/<version>/`, with `model_card.md`; None where it would be no better than the features."""
    if config.export.only_if_better and not is_better_on_held_out_queries(metrics):
        log.warning(
            "Nothing is exported: held-out queries, whose documents never trained, are not served better than by the "
            "frozen features. Use these as they are, or another head; export.only_if_better=false exports nevertheless."
        )
        return None
    return run_folder.export_model(workdir, model, config, metrics)


def _digest(dataset: PairDataset) -> str:
    """Of ids, judgements, roles and some of the features."""
    digest, splits, pairs = hashlib.sha256(), dataset.splits, dataset.pairs
    arrays = [splits.train, splits.validation, splits.test, pairs.query, pairs.document, pairs.grade]
    for side, rows in ((pairs.queries, dataset.queries), (pairs.documents, dataset.documents)):
        digest.update("\n".join(side.ids.tolist()).encode("utf-8", "surrogateescape"))
        arrays.append(rows[np.linspace(0, len(rows) - 1, num=min(len(rows), 64), dtype=np.int64)])
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_report(
    workdir: pathlib.Path,
    config: Config,
    folds: Sequence[PairDataset],
    head: Head,
    metrics: dict,
    costs: Sequence[Cost],
) -> None:
    """Write `report.html`; where it cannot be made, say why. As `run_folder.write_report` does."""
    dataset = folds[0]
    splits = dataset.splits
    with kept_in(workdir, f"To make it anew: the same command with --workdir {workdir}"):
        about, shown = about_pairs(config, dataset, metrics), as_yaml(public_values(config))
        learning = learning_curve(config, dataset, head, metrics["validation"])
        trained_on = np.union1d(splits.train, splits.validation) if config.training.refit else splits.train
        run = AboutRun(about, shown, metrics, lambda: learning, costs)
        write_pair_report(workdir / "report.html", run, dataset, head, trained_on)
