"""The section on matches: from which similarity on a hit is right how often, and what strangers pass."""

import numpy as np

from xbm_keras.evaluation.thresholds import MatchThresholds, measure_thresholds
from xbm_keras.report.figures import SERIES, drawing
from xbm_keras.report.page import Block, Figure, PageSection, PageTable, Panels, Paragraph
from xbm_keras.report.retrieval import TestItems

PRECISIONS = (0.8, 0.9, 0.95, 0.99)
MAX_TEST_ITEMS = 8192  # in whole classes


def section(thresholds: MatchThresholds, test: TestItems | None = None) -> PageSection:
    """Curves with their bands, and thresholds for some precisions; beside them what test items came to."""
    on_test = None if test is None else _of_test_items(test)
    reached = [each for each in PRECISIONS if thresholds.threshold_for(each) is not None]
    lines = [thresholds.told(each) for each in (reached[-1:] or PRECISIONS[:1])]
    note = (
        "Of held-out training classes: each item searched all others for its ten nearest. A threshold is the lowest "
        "similarity at which the precision surely is as asked: the lower end of the band, of 95 % confidence, by "
        "bootstrap over classes. In a gallery of many more items, or of nearer classes, more strangers pass."
    )
    blocks: list[Block] = [
        *(Paragraph(line) for line in lines),
        Panels([figure(thresholds), _table(thresholds, on_test)]),
        Paragraph(note, is_note=True),
    ]
    return PageSection("When a hit is a match", blocks)


def figure(thresholds: MatchThresholds) -> Figure:
    """Precision, recall and the share of unknown items over the similarity, each with its band."""
    curves = (
        ("precision", thresholds.precision, SERIES[2], "-"),
        ("recall", thresholds.recall, SERIES[1], "--"),
        ("unknown items that pass", thresholds.unknown, SERIES[4], ":"),
    )
    with drawing(350, 270) as (drawn, axes):
        for label, measure, color, dashes in curves:
            axes.fill_between(thresholds.similarities, measure[:, 1], measure[:, 2], color=color, alpha=0.2, lw=0)
            axes.plot(thresholds.similarities, measure[:, 0], color=color, ls=dashes, label=label)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("cosine similarity, at least")
        drawn.legend(loc="outside lower center", ncols=2)
    middle = len(thresholds.similarities) // 2
    said = ", ".join(f"{label} {measure[middle, 0]:.2f}" for label, measure, *_ in curves)
    alt = f"Precision, recall and unknown items over the similarity; at {thresholds.similarities[middle]:.2f}: {said}."
    return Figure(drawn.svg, alt, "Hits of at least some similarity")


def _table(thresholds: MatchThresholds, on_test: MatchThresholds | None) -> PageTable:
    rows = []
    for precision in PRECISIONS:
        threshold = thresholds.threshold_for(precision)
        if threshold is None:
            cells = ["not reached", "", ""]
        else:
            at = int(np.searchsorted(thresholds.similarities, threshold))
            cells = [f"{threshold:.3f}", *(f"{each[at, 0]:.0%}" for each in (thresholds.recall, thresholds.unknown))]
        if on_test is not None:
            cells.append("" if threshold is None else f"{on_test.precision_at(threshold):.1%}")
        rows.append([f"{precision:.0%}", *cells])
    columns = [
        "Precision",
        "Similarity",
        "Recall",
        "Unknown pass",
        *["Precision of test items"] * (on_test is not None),
    ]
    return PageTable(columns, rows, "Similarity from which on a hit is right so often.")


def _of_test_items(test: TestItems) -> MatchThresholds | None:
    """The same of test items, as far as they are not too many."""
    vectors, labels = test.vectors["trained"], test.labels
    order = np.random.default_rng(0).permutation(np.unique(labels))
    sizes = np.bincount(labels)[order]
    chosen = np.isin(labels, order[: max(2, int(np.searchsorted(np.cumsum(sizes), MAX_TEST_ITEMS)))])
    return measure_thresholds(vectors[chosen], labels[chosen])
