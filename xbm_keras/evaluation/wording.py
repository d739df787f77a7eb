"""What the numbers of a run are called, and what they say in one sentence."""

import statistics
from collections.abc import Mapping

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
SMALL = 0.001  # of MAP@R: no difference worth speaking of
PROTOCOLS = {
    "leave_one_out": "leave-one-out",
    "query_gallery": "query/gallery",
    "neighbors": "against the frozen features",
    "pairs": "all test queries",
    "pairs_unseen_documents": "queries whose documents never trained",
}
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


def title(embedding: str) -> str:
    """What an embedding is called in tables: "closed_form@64", nested, is "closed form, 64"."""
    return embedding.replace("_", " ").replace("@", ", ")


def widths_of(name: str, metric: str, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """A metric of an embedding at each of its widths, by the name that the width has; the full one is "full"."""
    found = {each.partition("@")[2] or "full": v[metric] for each, v in scores.items() if each.split("@")[0] == name}
    return {width: found[width] for width in sorted(found, key=lambda w: (w == "full", int(w) if w != "full" else 0))}


def views(chosen: Mapping) -> str:
    """What trains beside each picture, such as ", each with 2 augmented views"; by the `validation` of a run."""
    number = chosen.get("views", 1) - 1
    kinds = [f"{number} augmented view{'s' * (number > 1)}"] * (number > 0)
    kinds += ["3 turns as classes of their own"] * bool(chosen.get("turned_classes"))
    return f", each with {' and '.join(kinds)}" if kinds else ""


def outcome(metrics: dict) -> str:
    """Whether the head is "better" than the frozen features, "worse", or "mixed": about the same, or best untrained.

    Of training without labels: whether it keeps more of the neighbours than the closed form does. Of pairs: whether
    the interval of what it is above the frozen features excludes zero, by queries whose documents never trained.
    """
    if "pairs" in metrics:
        low, high = _of_pairs(metrics)["trained"]["ndcg_at_10_above_frozen_interval"]
        return "better" if low > 0 else "worse" if high < 0 else "mixed"
    if "neighbors" in metrics:
        gain = _kept(metrics)[1]
        return "better" if gain >= SMALL else "worse" if gain <= -SMALL else "mixed"
    _, gain = _gain(metrics)
    above = _above_frozen(metrics)
    return "worse" if above < 0 else "mixed" if above < SMALL or gain <= -SMALL else "better"


def verdict(metrics: dict) -> str:
    """One sentence: is the trained head worth having."""
    if "pairs" in metrics:
        return _verdict_of_pairs(metrics)
    if "neighbors" in metrics:
        return _verdict_without_labels(metrics)
    scores = {name: values["map_at_r"] for name, values in metrics["leave_one_out"].items()}
    best, gain = _gain(metrics)
    above = _above_frozen(metrics)
    name = best.replace("_", " ")
    if above < 0:
        return (
            f"The head is WORSE than the frozen features: MAP@R {scores['trained']:.3f} against {scores['frozen']:.3f}."
        )
    if above < SMALL:
        return f"The head changes next to nothing: MAP@R {scores['trained']:.3f}, {name} {scores[best]:.3f}."
    if gain <= -SMALL:
        return (
            f"The head is {above:.3f} MAP@R above the frozen features, but training made it worse than its {name} "
            f"start, by {-gain:.3f}: use training.epochs=0."
        )
    if gain < SMALL:
        return (
            f"The head is {above:.3f} MAP@R above the frozen features, by its {name} alone: training changed next to "
            "nothing."
        )
    beside = f", and {above:.3f} above the frozen features" if best != "frozen" else ""
    return f"The trained head is {gain:.3f} MAP@R above the best of the others ({name}){beside}."


def _of_pairs(metrics: dict) -> dict:
    """The scores that count: what is learnt by heart does not show in those of queries with unseen documents."""
    return metrics.get("pairs_unseen_documents", metrics["pairs"])


def _verdict_of_pairs(metrics: dict) -> str:
    """How much the trained head is above the frozen features, and how sure that is."""
    scores = _of_pairs(metrics)
    trained, frozen = scores["trained"]["ndcg_at_10"], scores["frozen"]["ndcg_at_10"]
    above, (low, high) = (scores["trained"][f"ndcg_at_10_above_frozen{each}"] for each in ("", "_interval"))
    told = {"better": "better than", "worse": "WORSE than", "mixed": "not surely better than"}[outcome(metrics)]
    which = "queries whose documents never trained" if "pairs_unseen_documents" in metrics else "test queries"
    said = (
        f"The trained head is {told} the frozen features: nDCG@10 {trained:.3f} against {frozen:.3f} of {which}, "
        f"{above:+.3f} (95 % interval {low:+.3f} to {high:+.3f})."
    )
    if scores is not metrics["pairs"]:
        seen = metrics["pairs"]
        said += f" Of all test queries {seen['trained']['ndcg_at_10']:.3f} against {seen['frozen']['ndcg_at_10']:.3f}."
    return said


def is_better_on_held_out_queries(metrics: dict) -> bool:
    """Whether held-out queries, whose documents never trained, were served better than by the frozen features."""
    return metrics["validation"]["pairs"]["trained"]["ndcg_at_10_above_frozen"] > 0


def _verdict_without_labels(metrics: dict) -> str:
    """How many of the neighbours are kept and, where there are labels to tell, what that does to retrieval."""
    kept, gain = _kept(metrics)
    num_widths = len(widths_of("trained", "neighbor_overlap_at_10", metrics["neighbors"]))
    widths = f"Over its {num_widths} widths the" if num_widths > 1 else "The"
    said = f"{widths} trained head keeps {kept:.1%} of the ten nearest neighbours"
    if "closed_form" in metrics["neighbors"]:
        said += f", {100 * abs(gain):.1f} points {'more' if gain >= 0 else 'LESS'} than its closed form"
    if "leave_one_out" in metrics:
        scores = metrics["leave_one_out"]
        full, frozen = scores["trained"]["map_at_r"], scores["frozen"]["map_at_r"]
        said += f"; at full width MAP@R is {full:.3f}, of the frozen features {frozen:.3f}"
    return said + "."


def _kept(metrics: dict) -> tuple[float, float]:
    """Overlap of the trained head with the frozen features, mean over widths, and how much that is above its start."""
    kept, start = (
        [*widths_of(name, "neighbor_overlap_at_10", metrics["neighbors"]).values()]
        for name in ("trained", "closed_form")
    )
    return statistics.mean(kept), statistics.mean(kept) - statistics.mean(start or [0.0])


def _above_frozen(metrics: dict) -> float:
    """How much MAP@R the trained head is above the frozen features."""
    scores = metrics["leave_one_out"]
    return scores["trained"]["map_at_r"] - scores["frozen"]["map_at_r"]


def _gain(metrics: dict) -> tuple[str, float]:
    """The best of the others, and how much MAP@R the trained head is above it."""
    scores = {name: values["map_at_r"] for name, values in metrics["leave_one_out"].items()}
    others = {name: value for name, value in scores.items() if not name.startswith("trained")}
    best = max(others, key=others.__getitem__)
    return best, scores["trained"] - others[best]
