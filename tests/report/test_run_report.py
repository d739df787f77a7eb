"""The report of a run: what it shows of pictures, texts and bare vectors, and that odd runs have one too."""

import pathlib
import re

import numpy as np
import pandas as pd
import pytest

from tests.report.test_page import Reader
from xbm_keras.data import arrays, dataset, splits, texts
from xbm_keras.evaluation.thresholds import measure_thresholds
from xbm_keras.report import matches
from xbm_keras.report.learning_curve import LearningCurve
from xbm_keras.report.run_report import AboutRun, write_run_report
from xbm_keras.report.stage_costs import Cost
from xbm_keras.stages.head.fc_layer import Head

NUM_CLASSES, PER_CLASS, WIDTH = 6, 5, 8


def make_dataset(source, label_names, keys):
    """Items of which all test, half of them as queries."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    features = rng.normal(size=(NUM_CLASSES, WIDTH))[labels] + rng.normal(size=(len(labels), WIDTH))
    everyone, is_query = np.arange(len(labels)), np.arange(len(labels)) % 2 == 0
    return dataset.Dataset(
        features=features.astype(np.float32),
        labels=labels,
        label_names=label_names,
        sample_ids=everyone,
        keys=np.array(keys),
        splits=splits.Splits(everyone[:0], everyone[:0], everyone, is_query, ~is_query),
        skipped={"broken.jpg": "an empty file"},
        num_computed=0,
        source=source,
        source_positions=everyone[::-1].copy(),
    )


def report_of(dataset, path, names=("frozen", "closed_form", "trained"), **changes):
    """The text of a report on this dataset, with made-up numbers."""
    head = Head(4)
    head.build((None, WIDTH))
    metrics = ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "r_precision")
    scores = {name: dict.fromkeys(metrics, 0.4 + 0.1 * i) for i, name in enumerate(names)}
    tried = {"pca": {"1.0": 0.31}, "lda": {"0.1": 0.42, "0.9": 0.415}}
    validation = {"leave_one_out": scores, "epoch": 2, "start": "lda", "shrinkage": 0.1, "tried": tried}
    validation |= {"parts": ["class", "gem"], "tried_parts": {"class": 0.515, "class + gem": 0.525}}
    arguments = {
        "about": {"Data": "photos", "Network": "MobileNetV2"},
        "config": "head: {embedding_dim: 4}\n",
        "metrics": {
            "leave_one_out": scores,
            "validation": validation,
            "phase": "refit",
        },
        "learning": lambda: LearningCurve({5: 0.4, 10: 0.5}, 0.3, (0.05, 0.15), "MAP@R", "classes"),
        "costs": [Cost("features", 0.5, None, None), Cost("training", 4000.0, 123.4, None)],
        **changes,
    }
    write_run_report(path / "report.html", AboutRun(**arguments), dataset, head)
    text = (path / "report.html").read_text("utf-8")
    Reader(text)
    return text


@pytest.fixture(scope="module")
def texts_report(tmp_path_factory):
    """Of texts, with a history."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [f'{{"text": "text {i} <i>", "label": 0}}' for i in range(NUM_CLASSES * PER_CLASS)]
    (folder / "x.jsonl").write_text("\n".join(lines))
    history = {"phase": ["select"] * 3 + ["refit"] * 2, "epoch": [1, 2, 3, 1, 2], "loss": [3.0, 2.0, 1.0, 3.0, 2.0]}
    history |= {"val_map_at_r": [0.4, 0.6, 0.5, None, None], "occupancy": 1.0, "positive_sim": 0.5, "negative_sim": 0.2}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    dataset = make_dataset(texts.TextTable(str(folder / "x.jsonl")), list("abcdef"), range(NUM_CLASSES * PER_CLASS))
    return report_of(dataset, folder)


def test_it_says_what_the_run_found(texts_report):
    said = Reader(texts_report).texts
    assert "The head is 0.200 MAP@R above the frozen features, and 0.100 above its closed form." in said
    assert {"Results", "What it finds", "Classes", "Embedding space", "Training", "The run"} <= set(said)
    assert "python train.py --config config.yaml" in said
    assert "1 item skipped: an empty file (1)." in said
    assert {"0.5 s", "1 h 06 min", "123 MB"} <= set(said)
    assert "Epoch 2 was chosen. Test classes take no part in this." in said
    assert "Would more classes help" in said
    assert {"Start", "0.310", "0.415"} <= set(said)
    assert any(text.startswith("Chosen: lda, shrinkage 0.1. ") for text in said)
    assert {"Parts of the network", "class + gem", "0.515", "0.525"} <= set(said)
    assert any(text.startswith("Taken: class + gem, the narrowest ") for text in said)
    assert "Loss" in said
    assert "Active pairs" not in said  # the history has none


def test_texts_are_shown_those_at_their_place_in_the_source(texts_report):
    said = Reader(texts_report).texts
    shown = [text for text in said if text.startswith("text ")]
    assert len(set(shown)) > 10
    assert all(re.fullmatch(r"text \d+ <i>", text) for text in shown)
    # Item i is at position 29 - i of the source, and item 0 is of class "a", the first: so are texts 25 to 29.
    queries = re.findall(r"<q>text (\d+) &lt;i&gt;</q>\s*<div><b>(\w)</b>", texts_report)
    assert queries
    assert all((29 - int(number)) // PER_CLASS == "abcdef".index(label) for number, label in queries)


def test_vectors_are_shown_by_their_ids_and_a_run_without_epochs_has_a_report(tmp_path):
    np.savez(tmp_path / "x.npz", features=np.ones((2, 2), np.float32), label=np.arange(2))
    source = arrays.Features(str(tmp_path / "x.npz"))
    dataset = make_dataset(source, [7, 8, 9, 10, 11, 12], range(NUM_CLASSES * PER_CLASS))
    said = Reader(report_of(dataset, tmp_path, names=("frozen", "trained"), learning=lambda: None)).texts
    assert any(re.match(r"item \d+", text) for text in said)
    assert "class 7" in said
    assert "No epoch was trained: the head is its start." in said
    assert not any("closed form" in text and "0.5" in text for text in said)
    assert "Would more classes help" not in said


def test_the_skipped_are_bounded(tmp_path, texts_report):
    np.savez(tmp_path / "x.npz", features=np.ones((2, 2), np.float32), label=np.arange(2))
    dataset = make_dataset(arrays.Features(str(tmp_path / "x.npz")), list("abcdef"), range(30))
    dataset.skipped.update({f"{i}.jpg": "a corrupt picture" for i in range(1000)})
    text = report_of(dataset, tmp_path)
    assert text.count("a corrupt picture") < 60
    assert "The first 50:" in text
    assert len(text) < 600_000 > len(texts_report)
    assert pathlib.Path(tmp_path / "report.html").exists()


def test_thresholds_beside_it_are_drawn_with_what_test_items_came_to(tmp_path):
    np.savez(tmp_path / "x.npz", features=np.ones((2, 2), np.float32), label=np.arange(2))
    labels = np.repeat(np.arange(30), 6)
    rng = np.random.default_rng(0)
    held_out = measure_thresholds(rng.normal(size=(30, 16))[labels] + 0.4 * rng.normal(size=(180, 16)), labels)
    held_out.write(tmp_path)
    text = report_of(make_dataset(arrays.Features(str(tmp_path / "x.npz")), list("abcdef"), range(30)), tmp_path)
    said = Reader(text).texts
    assert "When a hit is a match" in said
    assert held_out.told(0.9) in said or held_out.told(0.95) in said or held_out.told(0.99) in said
    assert f"{held_out.threshold_for(0.9):.3f}" in said
    assert "Precision of test items" in said
    assert "unknown items that pass" in text
    row = matches._table(held_out, held_out).rows[1]
    threshold = held_out.threshold_for(0.9)
    at = held_out.similarities.round(6).tolist().index(round(threshold, 6))
    assert row[1:] == [f"{threshold:.3f}", f"{held_out.recall[at, 0]:.0%}", f"{held_out.unknown[at, 0]:.0%}",
                       f"{held_out.precision[at, 0]:.1%}"]  # fmt: skip
    confused = measure_thresholds(rng.normal(size=(180, 16)), labels)
    assert matches._table(confused, None).rows[1] == ["90%", "not reached", "", ""]
