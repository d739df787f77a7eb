"""What the numbers of a run are called, and what they say in one sentence."""

SHOWN = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "map_at_r": "MAP@R",
    "r_precision": "R-Prec",
}
PROTOCOLS = {"leave_one_out": "leave-one-out", "query_gallery": "query/gallery"}


def outcome(metrics: dict) -> str:
    """Whether the trained head is "better" than the frozen features, the "same", or "worse" than these or its start."""
    _, gain = _gain(metrics)
    above_frozen = metrics["leave_one_out"]["trained"]["map_at_r"] - metrics["leave_one_out"]["frozen"]["map_at_r"]
    return "worse" if gain < 0 else "better" if above_frozen >= 0.001 else "same"


def verdict(metrics: dict) -> str:
    """One sentence: is the trained head worth having."""
    scores = {name: values["map_at_r"] for name, values in metrics["leave_one_out"].items()}
    best, gain = _gain(metrics)
    name = best.replace("_", " ")
    if scores["trained"] < scores["frozen"]:
        return (
            f"The head is WORSE than the frozen features: MAP@R {scores['trained']:.3f} against {scores['frozen']:.3f}."
        )
    if gain < 0:
        return f"Training made the head worse than its {name} start, by {-gain:.3f} MAP@R: use training.epochs=0."
    above = scores["trained"] - scores["frozen"]
    if gain < 0.001 <= above:
        return (
            f"The head is {above:.3f} MAP@R above the frozen features; training changed next to nothing of its {name} "
            f"({scores[best]:.3f}, now {scores['trained']:.3f})."
        )
    if gain < 0.001:
        return f"The head changes next to nothing: MAP@R {scores['trained']:.3f}, {name} {scores[best]:.3f}."
    beside = f", and {above:.3f} above the frozen features" if best != "frozen" else ""
    return f"The trained head is {gain:.3f} MAP@R above the best of the others ({name}){beside}."


def _gain(metrics: dict) -> tuple[str, float]:
    """The best of the others, and how much MAP@R the trained head is above it."""
    scores = {name: values["map_at_r"] for name, values in metrics["leave_one_out"].items()}
    others = {name: value for name, value in scores.items() if name != "trained"}
    best = max(others, key=others.__getitem__)
    return best, scores["trained"] - others[best]
