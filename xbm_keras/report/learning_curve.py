"""Would more data help: what the closed form of more and more of it gives."""

import dataclasses
from collections.abc import Mapping

from xbm_keras.evaluation import wording
from xbm_keras.report.charts import AMBER, GRAY
from xbm_keras.report.figures import MUTED, drawing
from xbm_keras.report.page import Block, Figure, PageSection, Panels, Paragraph

FLAT = 0.0005  # between the least and the most: no difference worth speaking of


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """A score of held-out items or queries under the closed form of more and more of the training data."""

    scores: Mapping[int, float]
    """By number of training classes or queries, ascending."""
    frozen: float
    """Of the frozen features."""
    doubling: tuple[float, float]
    """Ends of the 95 % interval of what the largest number gives above the one before it, query by query."""
    metric: str
    """Its name, such as "MAP@R"."""
    units: str
    """What is counted: "classes" or "queries"."""

    def __str__(self) -> str:
        """What it says, in a sentence or two."""
        counts, scores = list(self.scores), list(self.scores.values())
        if max(scores) - min(scores) < FLAT:
            return f"The closed form hardly depends on the number of {self.units}, so it does not tell."
        (low, high), gain = self.doubling, scores[-1] - scores[-2]
        said = (
            f"The closed form of {counts[-2]:,} training {self.units} gives {scores[-2]:.3f}, that of all "
            f"{counts[-1]:,} {scores[-1]:.3f}: {gain:+.3f} (95 % interval {low:+.3f} to {high:+.3f}). "
        )
        rises = f"It still rises: more {self.units} would likely help."
        return said + (rises if low > 0 else f"No sure gain by the last {self.units}.")


def section(curve: LearningCurve, start: str) -> PageSection:
    """A curve, what it says, and of which `start` it is."""
    note = (
        f"Of the validation {curve.units}, which did not train; the form is {wording.title(start)}. It is measured "
        f"because it takes a second; what training adds may need fewer {curve.units}, or more."
    )
    blocks: list[Block] = [Paragraph(str(curve)), Panels([figure(curve)]), Paragraph(note, is_note=True)]
    return PageSection(f"Would more {curve.units} help", blocks)


def figure(curve: LearningCurve) -> Figure:
    """The score over the number, beside that of the frozen features."""
    with drawing() as (drawn, axes):
        scores = curve.scores
        axes.plot(list(scores), list(scores.values()), color=AMBER, marker="s", markersize=4, label="closed form")
        axes.axhline(curve.frozen, color=GRAY, ls="--", label="frozen")
        axes.set_xscale("log")
        axes.set_xticks(list(scores), [f"{count:,}" for count in scores])
        axes.minorticks_off()
        axes.set_xlabel(f"training {curve.units}", color=MUTED)
        drawn.legend(loc="outside lower center", ncols=3)
    title = f"{curve.metric} of validation {curve.units}"
    said = ", ".join(f"{score:.3f} with {count}" for count, score in scores.items())
    alt = f"{title} by training {curve.units}: {said}; frozen {curve.frozen:.3f}."
    return Figure(drawn.svg, alt, title)
