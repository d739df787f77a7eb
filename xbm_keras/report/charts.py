"""The figures of a run's report."""

from collections.abc import Mapping, Sequence

import matplotlib.ticker
import numpy as np
import pandas as pd

from xbm_keras.report.comparison import to_plane
from xbm_keras.report.figures import INK, MUTED, SERIES, drawing
from xbm_keras.report.page import Figure

GRAY, AMBER, BLUE = SERIES[:3]
COLOR_OF = {"frozen": GRAY, "closed_form": AMBER, "trained": BLUE}
MARKERS = "osD^vPX*<>"
OVER_WIDTHS = {
    ("leave_one_out", "map_at_r"): "MAP@R",
    ("neighbors", "neighbor_overlap_at_10"): "Kept of the 10 nearest neighbours",
    ("pairs", "ndcg_at_10"): "nDCG@10 of all test queries",
    ("pairs_unseen_documents", "ndcg_at_10"): "nDCG@10 of those whose documents never trained",
}
CHOSEN_BY = {
    "map_at_r": ("MAP@R", "validation classes", "classes"),
    "ndcg_at_10": ("nDCG@10", "validation queries", "queries"),
}
PHASES = {"select": ("-", "choosing the epoch"), "refit": ((0, (4, 2)), "all training data")}


def curves(history: pd.DataFrame, validation: Mapping[str, Mapping[str, float]], best_epoch: int) -> list[Figure]:
    """One figure per quantity, over the epochs.

    Args:
        history: columns phase, epoch and the logs of `fit`.
        validation: `{embedding: {metric: value}}` of the validation classes, or queries.
        best_epoch: the chosen one.
    """
    figures = [_curve(history, "Loss", {"loss": ""}, "Training loss per epoch.")]
    select = history[history.phase == "select"]
    if "val_neighbor_overlap_at_10" in history and len(select):
        kept = {"val_neighbor_overlap_at_10": "overlap@10", "val_neighbor_overlap_at_100": "overlap@100"}
        caption = "Of held-out items, mean over widths."
        figures.append(_curve(select, "Agreement with the frozen features", kept, caption))
    for metric, (name, validated, tested) in CHOSEN_BY.items():
        if f"val_{metric}" in history and len(select):
            svg = _validation_curve(history, metric, validation, best_epoch)
            alt = f"{name} of the {validated} over {len(select)} epochs, beside frozen features and closed form."
            chosen = f"Epoch {best_epoch} was chosen." if best_epoch else "No epoch beat the untrained start."
            caption = f"{chosen} Test {tested} take no part in this."
            if (history.phase == "select_2").any():
                caption += " Thin: the same with others held out; all together choose."
            figures.append(Figure(svg, alt, f"{name} on {validated}", caption))
    pairs = {"active_pairs": "pairs with a gradient", "valid_anchors": "anchors with a pair"}
    similarities = {"positive_sim": "positives", "negative_sim": "negatives"}
    figures += [
        _curve(history, "Similarity of the picked pairs", similarities, "Mean cosine similarity under the head."),
        _curve(history, "Active pairs", pairs, "Shares of picked pairs, and of anchors.", (0, 1.04)),
        _curve(history, "Memory occupancy", {"occupancy": ""}, "Filled share of the cross-batch memory.", (0, 1.04)),
    ]
    return [figure for figure in figures if figure is not None]


def _validation_curve(history: pd.DataFrame, metric: str, validation: Mapping, best_epoch: int) -> str:
    """What the epoch is chosen by; mean over nested widths, as it is logged."""
    with drawing() as (figure, axes):
        for phase, rows in history[history.phase.str.startswith("select")].groupby("phase", sort=False):
            is_first = phase == "select"
            look: dict = {"marker": "o", "markersize": 3, "label": "head"} if is_first else {"lw": 0.8, "alpha": 0.55}
            axes.plot(rows.epoch, rows[f"val_{metric}"], color=BLUE, **look)
        for name, dashes in (("frozen", "--"), ("closed_form", ":")):
            levels = [values[metric] for each, values in validation.items() if each.split("@")[0] == name]
            if levels:
                axes.axhline(np.mean(levels), color=COLOR_OF[name], ls=dashes, label=name.replace("_", " "))
        if best_epoch:
            axes.axvline(best_epoch, color=MUTED, lw=1, ls=(0, (1, 2)))
        _name_epochs(axes)
        axes.legend()
    return figure.svg


def _curve(
    history: pd.DataFrame, title: str, columns: Mapping[str, str], caption: str, limits: tuple | None = None
) -> Figure | None:
    """Some columns over the epochs, a line per phase; None where the run did not log them."""
    columns = {name: label for name, label in columns.items() if name in history and history[name].notna().any()}
    if not columns:
        return None
    phases = [phase for phase in PHASES if (history.phase == phase).any()]
    with drawing() as (figure, axes):
        # Colour and mark tell the quantity, dashes the phase; the legend names each of them once.
        for (name, label), color, marker in zip(columns.items(), (BLUE, AMBER), "os", strict=False):
            axes.plot([], [], color=color, marker=marker, markersize=3, label=label)
            for phase in phases:
                rows = history[history.phase == phase]
                axes.plot(rows.epoch, rows[name], color=color, ls=PHASES[phase][0], marker=marker, markersize=3)
        for phase in phases if len(phases) > 1 else ():
            axes.plot([], [], color=INK, ls=PHASES[phase][0], label=PHASES[phase][1])
        _name_epochs(axes)
        if limits:
            axes.set_ylim(*limits)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=2)
    return Figure(figure.svg, f"{title} over the epochs: {', '.join(columns)}.", title, caption)


def _name_epochs(axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))


def scores(metrics: Mapping[str, Mapping[str, Mapping[str, float]]], titles: Mapping[str, str]) -> Figure:
    """MAP@R of each embedding as bars.

    Args:
        metrics: `{protocol: {embedding: {metric: value}}}`.
        titles: of the protocols.
    """
    rows: list[tuple[str, float | None]] = []
    for protocol, title in titles.items():
        if metrics.get(protocol):
            rows.append((title, None))
            rows += [(name, values["map_at_r"]) for name, values in metrics[protocol].items()]
    most = max(value for _, value in rows if value is not None)
    with drawing(350, 10 + 25 * len(rows)) as (figure, axes):
        for y, (name, value) in enumerate(rows):
            if value is None:
                axes.text(0, -y - 0.1, name, va="center", color=MUTED)
            else:
                weight = "bold" if name == "trained" else "normal"
                axes.barh(-y, value, 0.7, color=COLOR_OF.get(name, BLUE))
                axes.text(value + 0.015 * most, -y, f"{value:.3f}", va="center", weight=weight)
        axes.set_yticks([-y for y in range(len(rows))], ["" if v is None else n.replace("_", " ") for n, v in rows])
        axes.tick_params(length=0, labelcolor=INK)
        axes.set(xticks=[], xlim=(0, 1.2 * most), ylim=(0.5 - len(rows), 0.5))
        axes.grid(False)
        axes.spines[:].set_visible(False)
    said = "; ".join(name if value is None else f"{name.replace('_', ' ')} {value:.3f}" for name, value in rows)
    return Figure(figure.svg, f"Bars of MAP@R: {said}.", "MAP@R")


def widths(metrics: Mapping[str, Mapping[str, Mapping[str, float]]], embedding_dim: int) -> list[Figure]:
    """Scores of nested embeddings over the number of dimensions, a figure per metric.

    Args:
        metrics: `{protocol: {embedding: {metric: value}}}`; "trained@64" is the beginning of "trained".
        embedding_dim: of the embeddings without a number.
    """
    figures = []
    for (protocol, metric), name in OVER_WIDTHS.items():
        if protocol not in metrics:
            continue
        scores, said = metrics[protocol], []
        named = [
            (each.partition("@"), values[metric], values.get(f"{metric}_interval")) for each, values in scores.items()
        ]
        with drawing() as (figure, axes):
            for kind, marker in (("closed_form", "s"), ("trained", "o")):
                points = sorted((int(at[2] or embedding_dim), value) for at, value, _ in named if at[0] == kind)
                for at, _, ends in named:
                    if ends and at[0] == kind:
                        axes.plot([int(at[2] or embedding_dim)] * 2, ends, color=COLOR_OF[kind], lw=1)
                if points:
                    words = kind.replace("_", " ")
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, color=COLOR_OF[kind], marker=marker, markersize=4, label=words)
                    said.append(f"{words} " + ", ".join(f"{value:.3f} at {width}" for width, value in points))
            if "frozen" in scores:
                axes.axhline(scores["frozen"][metric], color=GRAY, ls="--", label="frozen")
                said.append(f"frozen {scores['frozen'][metric]:.3f}")
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(width) for width in x])
            axes.minorticks_off()
            axes.set_xlabel("dimensions")
            figure.legend(loc="outside lower center", ncols=3)
        figures.append(Figure(figure.svg, f"{name} over dimensions: {'; '.join(said)}.", name))
    return figures


def histograms(similarities: Mapping[str, tuple[np.ndarray, np.ndarray]], rates: Mapping[str, float]) -> list[Figure]:
    """Similarities of same-class and other-class pairs, a figure per embedding, on one scale.

    Args:
        similarities: by embedding: of same-class pairs [P], and of other-class pairs [P'].
        rates: by embedding: how often the former exceeds the latter.
    """
    lowest = min(min(np.quantile(part, 0.001) for part in parts) for parts in similarities.values())
    edges = np.linspace(min(lowest, 0.9), 1, 51)
    figures = []
    for name, (same, other) in similarities.items():
        with drawing() as (figure, axes):
            for values, color, dashes, label in ((other, AMBER, "--", "other class"), (same, BLUE, "-", "same class")):
                heights = np.histogram(np.clip(values, edges[0], 1), edges)[0] / len(values)
                axes.stairs(heights, edges, color=color, ls=dashes, lw=1.8, label=label)
                axes.stairs(heights, edges, color=color, fill=True, alpha=0.22)
            axes.set_xlabel("cosine similarity of a pair")
            axes.set_yticks([])
            axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend
            axes.legend(loc="upper center", ncols=2)
        words = name.replace("_", " ")
        caption = f"A same-class pair is the more similar one {rates[name]:.1%} of the time."
        alt = f"Histogram of the similarities of {words} embeddings: same-class pairs, median {np.median(same):.2f}; "
        alt += f"other-class pairs, median {np.median(other):.2f}."
        figures.append(Figure(figure.svg, alt, words.capitalize(), caption))
    return figures


def maps(embeddings: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]) -> list[Figure]:
    """A 2-D map of the same items per embedding, and the legend.

    Args:
        embeddings: by name, [n, E].
        labels: [n] positions in `names`.
        names: of at most ten classes.
    """
    figures: list[Figure] = []
    plane = None
    for name, vectors in embeddings.items():
        plane, share = to_plane(vectors, like=plane)
        with drawing(350, 310) as (figure, axes):
            for i in range(len(names)):
                axes.scatter(
                    plane[labels == i, 0],
                    plane[labels == i, 1],
                    s=18,
                    marker=MARKERS[i],
                    color=SERIES[i],
                    alpha=0.8,
                    linewidths=0,
                )
            axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
            axes.spines[["left", "bottom"]].set_visible(False)
        words = name.replace("_", " ").capitalize()
        alt = f"Scatter plot of {len(labels)} {name.replace('_', ' ')} embeddings of {len(names)} classes."
        figures.append(Figure(figure.svg, alt, words, f"The two axes hold {share:.0%} of the variance."))
    with drawing(350, 24 + 20 * len(names)) as (figure, axes):
        for i, name in enumerate(names):
            axes.scatter([0.03], [-i], s=42, marker=MARKERS[i], color=SERIES[i], linewidths=0)
            axes.text(0.08, -i, clipped(name, 40), va="center", color=INK)
        axes.set(xlim=(0, 1), ylim=(-len(names) + 0.4, 0.6))
        axes.set_axis_off()
    return [*figures, Figure(figure.svg, "Legend: " + ", ".join(names), "Classes")]


def clipped(text: str, length: int) -> str:
    """At most this many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
