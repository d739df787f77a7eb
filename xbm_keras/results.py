"""What the numbers of a run are called, and what they say in one sentence."""

SHOWN = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "map_at_r": "MAP@R",
    "r_precision": "R-Prec",
}
SMALL = 0.001  # of MAP@R: no difference worth speaking of
PROTOCOLS = {"leave_one_out": "leave-one-out", "query_gallery": "query/gallery"}


def outcome(metrics: dict) -> str:
    """Whether the head is "better" than the frozen features, "worse", or "mixed": about the same, or best untrained."""
    _, gain = _gain(metrics)
    above = _above_frozen(metrics)
    return "worse" if above < 0 else "mixed" if above < SMALL or gain <= -SMALL else "better"


def verdict(metrics: dict) -> str:
    """One sentence: is the trained head worth having."""
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


def _above_frozen(metrics: dict) -> float:
    """How much MAP@R the trained head is above the frozen features."""
    scores = metrics["leave_one_out"]
    return scores["trained"]["map_at_r"] - scores["frozen"]["map_at_r"]


def _gain(metrics: dict) -> tuple[str, float]:
    """The best of the others, and how much MAP@R the trained head is above it."""
    scores = {name: values["map_at_r"] for name, values in metrics["leave_one_out"].items()}
    others = {name: value for name, value in scores.items() if name != "trained"}
    best = max(others, key=others.__getitem__)
    return best, scores["trained"] - others[best]
