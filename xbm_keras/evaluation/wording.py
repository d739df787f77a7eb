"""What the numbers of a run are called, and what they say in one sentence."""

import math
import statistics
from collections.abc import Mapping
from typing import Literal

SHOWN = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "map_at_r": "MAP@R",
    "r_precision": "R-Prec",
}
SCORES = {
    "val_map_at_r": ("MAP@R", "held-out training classes"),
    "val_neighbor_overlap_at_10": ("overlap@10", "held-out items"),
    "val_ndcg_at_10": ("nDCG@10", "held-out queries"),
}
"""What heads are chosen by, with and without labels: what it is called, and of what it is taken."""
Tone = Literal["good", "bad", "plain"]
SMALL = 0.001  # of MAP@R: no difference worth speaking of
PROTOCOLS = {
    "leave_one_out": "leave-one-out",
    "query_gallery": "query/gallery",
    "neighbors": "against the frozen features",
    "pairs": "all test queries",
    "pairs_unseen_documents": "queries whose documents never trained",
}
AVERAGED = {"trained_averaged": "in queries and gallery", "trained_averaged_queries": "in queries alone"}
"""What embeddings averaged over views are called, and where they stand: in this order both, and queries alone."""
SHOWN_OF_NEIGHBORS = {
    "neighbor_overlap_at_1": "overlap@1",
    "neighbor_overlap_at_10": "overlap@10",
    "similarity_rank_correlation": "rank corr.",
}
"""Shares of the nearest neighbours that the frozen features find, and Spearman's correlation of similarities."""


SHOWN_OF_PAIRS = {
    "ndcg_at_10": "nDCG@10",
    "mrr_at_10": "MRR@10",
    "recall_at_10": "R@10",
    "recall_at_100": "R@100",
    "map": "MAP",
}


def shown(protocol: str) -> Mapping[str, str]:
    """The metrics of a protocol, and what they are called in tables."""
    if protocol.startswith("pairs"):
        return SHOWN_OF_PAIRS
    return SHOWN_OF_NEIGHBORS if protocol == "neighbors" else SHOWN


def tables(metrics: Mapping) -> list[tuple[Mapping[str, str], list[str]]]:
    """Metrics that stand in one table, with what they are called, and the protocols that have them."""
    found: dict[tuple, list[str]] = {}
    for protocol in PROTOCOLS:
        if metrics.get(protocol):
            found.setdefault(tuple(shown(protocol).items()), []).append(protocol)
    return [(dict(columns), protocols) for columns, protocols in found.items()]


def title(embedding: str) -> str:
    """What an embedding is called in tables: "closed_form@64", nested, is "closed form, 64"."""
    return embedding.replace("_", " ").replace("@", ", ")


def views(chosen: Mapping) -> str:
    """What trains beside each picture, such as ", each with 2 augmented views"; by the `validation` of a run."""
    number = chosen.get("views", 1) - 1
    kinds = [f"{number} augmented view{'s' * (number > 1)}"] * (number > 0)
    kinds += ["3 turns as classes of their own"] * bool(chosen.get("turned_classes"))
    return f", each with {' and '.join(kinds)}" if kinds else ""


def verdict(metrics: dict) -> tuple[Tone, str]:
    """Whether the trained head is worth having: "good", "bad" or "plain"; and one sentence that says so.

    Above and worse are said where an interval of 95 % over the classes excludes zero, with the interval. Good is above
    the frozen features, and not worse than what is there untrained; plain what is not surely one or the other.
    Of training without labels good is to keep more of the neighbours than the closed form does, by an interval over the
    items. Of pairs the interval is of what the head is above the frozen features, by queries whose documents never
    trained.
    """
    if "pairs" in metrics:
        return _verdict_of_pairs(metrics)
    if "neighbors" in metrics:
        return _verdict_without_labels(metrics)
    scores = {name: values["map_at_r"] for name, values in metrics["leave_one_out"].items()}
    trained, frozen = scores["trained"], scores["frozen"]
    (low, high), told = _interval_above(metrics, "frozen")
    found = f"MAP@R {trained:.3f} against {frozen:.3f}{told}"
    tone: Tone
    if abs(trained - frozen) < SMALL:
        tone, said = "plain", f"The head changes next to nothing: MAP@R {trained:.3f}, frozen {frozen:.3f}{told}"
    elif high < 0:
        tone, said = "bad", f"The head is WORSE than the frozen features: {found}"
    elif low <= 0:
        tone, said = "plain", f"The head is not surely better than the frozen features: {found}"
    else:
        tone, said = "good", f"The head is {trained - frozen:.3f} MAP@R above the frozen features{told}"
    start = scores.get("closed_form", frozen)  # a random start has none
    gain = trained - start
    (low, high), told = _interval_above(metrics, "closed_form") if "closed_form" in scores else ((0.0, 0.0), "")
    if high < 0 and gain <= -SMALL:
        worse = f"training made it worse than its closed form start, by {-gain:.3f}{told}: use training.epochs=0"
        return ("bad", f"{said}, and {worse}.") if tone == "bad" else ("plain", f"{said}, but {worse}.")
    if tone != "good" or start <= frozen:
        return tone, f"{said}."
    if abs(gain) < SMALL:
        if metrics.get("validation", {}).get("epoch") == 0:
            return "good", f"{said}, by its closed form alone: no epoch of training was better on held-out classes."
        return "good", f"{said}, by its closed form alone: training changed next to nothing{told}."
    if low <= 0:
        found = f"MAP@R {trained:.3f} against {start:.3f}{told}"
        return "good", f"{said}, and not surely better than its closed form: {found}."
    return "good", f"{said}, and {gain:.3f} above its closed form{told}."


def _interval_above(metrics: dict, other: str) -> tuple[tuple[float, float], str]:
    """The interval of what the trained head is above another, and how it is said.

    Runs of earlier versions have none: then it is what was measured, and not said. Of one class alone nothing is sure.
    """
    scores = metrics["leave_one_out"]
    interval = scores["trained"].get(f"map_at_r_above_{other}_interval")
    if interval is None:
        gain = scores["trained"]["map_at_r"] - scores[other]["map_at_r"]
        return (gain, gain), ""
    return _over_classes(*interval)


def _over_classes(low: float, high: float) -> tuple[tuple[float, float], str]:
    """The interval, which of one class alone is a point and tells nothing, and how it is said."""
    if low == high != 0:
        return (-math.inf, math.inf), " (of one class alone, which tells no interval)"
    return (low, high), f" (95 % interval over classes {low:+.3f} to {high:+.3f})"


def _verdict_of_pairs(metrics: dict) -> tuple[Tone, str]:
    """How much the trained head is above the frozen features, and how sure that is.

    The scores that count are of unseen documents: in others does not show what is learnt by heart.
    """
    scores = metrics.get("pairs_unseen_documents", metrics["pairs"])
    trained, frozen = scores["trained"]["ndcg_at_10"], scores["frozen"]["ndcg_at_10"]
    above, (low, high) = (scores["trained"][f"ndcg_at_10_above_frozen{each}"] for each in ("", "_interval"))
    tone: Tone = "good" if low > 0 else "bad" if high < 0 else "plain"
    told = {"good": "better than", "bad": "WORSE than", "plain": "not surely better than"}[tone]
    which = "queries whose documents never trained" if "pairs_unseen_documents" in metrics else "test queries"
    said = (
        f"The trained head is {told} the frozen features: nDCG@10 {trained:.3f} against {frozen:.3f} of {which}, "
        f"{above:+.3f} (95 % interval {low:+.3f} to {high:+.3f})."
    )
    if scores is not metrics["pairs"]:
        seen = metrics["pairs"]
        said += f" Of all test queries {seen['trained']['ndcg_at_10']:.3f} against {seen['frozen']['ndcg_at_10']:.3f}."
    return tone, said


def is_better_on_held_out_queries(metrics: dict) -> bool:
    """Whether held-out queries, whose documents never trained, were served better than by the frozen features."""
    return metrics["validation"]["above_frozen"] > 0


def _verdict_without_labels(metrics: dict) -> tuple[Tone, str]:
    """How many of the neighbours are kept and, where there are labels to tell, what that does to retrieval."""
    kept, start = (
        [values["neighbor_overlap_at_10"] for at, values in metrics["neighbors"].items() if at.split("@")[0] == name]
        for name in ("trained", "closed_form")
    )
    gain = statistics.mean(kept) - statistics.mean(start or [0.0])
    low, high = interval = _of_neighbors(metrics, gain)
    widths = f"Over its {len(kept)} widths the" if len(kept) > 1 else "The"
    is_start = bool(start) and metrics.get("validation", {}).get("epoch") == 0
    head = "closed form, which no epoch bettered," if is_start else "trained head"
    said = f"{widths} {head} keeps {statistics.mean(kept):.1%} of the ten nearest neighbours"
    if start and not is_start:
        if abs(gain) < SMALL:
            points = "as its closed form does to a tenth of a point"
        elif low <= 0 <= high:
            points = (
                f"not surely {'more' if gain > 0 else 'less'} than the {statistics.mean(start):.1%} of its closed form"
            )
        else:
            points = f"{100 * abs(gain):.1f} points {'more' if gain > 0 else 'LESS'} than its closed form"
        said += f", {points}"
        if interval != (gain, gain):
            said += " (95 % interval over items {:+.1f} to {:+.1f} points)".format(*(100 * each for each in interval))
    if "leave_one_out" in metrics:
        full, frozen = (metrics["leave_one_out"][name]["map_at_r"] for name in ("trained", "frozen"))
        said += f"; at full width MAP@R is {full:.3f}, of the frozen features {frozen:.3f}"
    tone: Tone = "plain" if abs(gain) < SMALL or low <= 0 <= high else "good" if gain > 0 else "bad"
    return tone, f"{said}."


def _of_neighbors(metrics: dict, gain: float) -> tuple[float, float]:
    """The interval of how much more of its neighbours the trained head keeps than the closed form.

    Runs of earlier versions have none: then it is what was measured.
    """
    found = metrics["neighbors"].get("trained", {}).get("neighbor_overlap_at_10_above_closed_form_interval")
    return (gain, gain) if found is None else tuple(found)


def gains_of_averages(metrics: Mapping) -> list[str]:
    """What embeddings averaged over views find more than plain ones, in a sentence for each way to search."""
    lines = []
    for name, where in AVERAGED.items():
        for protocol, embeddings in metrics.items():
            if (found := embeddings.get(name)) is not None:
                more = found["map_at_r_above_trained"]
                (low, high), told = _over_classes(*found["map_at_r_above_trained_interval"])
                tone = "more" if low > 0 else "LESS" if high < 0 else "not surely more or less"
                lines.append(f"Averaged {where}, {PROTOCOLS[protocol]}: {tone}, MAP@R {more:+.3f}{told}.")
    return lines
