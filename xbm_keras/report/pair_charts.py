"""The figures of a report on queries and documents."""

from collections.abc import Mapping, Sequence

import matplotlib.ticker

from xbm_keras.evaluation.wording import title
from xbm_keras.report.charts import BLUE, COLOR_OF, GRAY
from xbm_keras.report.figures import BAD, GOOD, INK, PAPER, drawing
from xbm_keras.report.page import Figure

FILLED = {"pairs": False, "pairs_unseen_documents": True}
LEGEND = {"pairs": "all test queries", "pairs_unseen_documents": "documents never trained"}


def intervals(metrics: Mapping[str, Mapping[str, Mapping]], protocols: Sequence[str]) -> Figure:
    """nDCG@10 of each embedding of full width, with its interval.

    Args:
        metrics: `{protocol: {embedding: {metric: value}}}`.
        protocols: to show; the last one is filled, for it is the one that counts.
    """
    names = [name for name in metrics[protocols[0]] if "@" not in name]
    said = []
    with drawing(350, 62 + 20 * len(protocols) * len(names)) as (figure, axes):
        for y, name in enumerate(names):
            color = COLOR_OF.get(name, BLUE)
            for i, protocol in enumerate(protocols):
                value, (low, high) = (metrics[protocol][name][f"ndcg_at_10{each}"] for each in ("", "_interval"))
                is_last = protocol == protocols[-1]
                at = -y + (0.2 - 0.4 * i if len(protocols) > 1 else 0)
                axes.plot([low, high], [at, at], color=color, lw=1.6)
                axes.plot([value], [at], "o", color=color, markersize=7, mfc=color if is_last else PAPER, mew=1.6)
                weight = "bold" if name == "trained" and is_last else "normal"
                axes.annotate(
                    f"{value:.3f}", (high, at), (5, 0), textcoords="offset points", va="center", weight=weight, size=11
                )
                said.append(f"{title(name)}, {LEGEND[protocol]}: {value:.3f}, {low:.3f} to {high:.3f}")
        axes.set_yticks([-y for y in range(len(names))], [title(name) for name in names])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(0.55 - len(names), 0.55)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.grid(axis="y", visible=False)
        axes.spines[["left"]].set_visible(False)
        left, right = axes.get_xlim()
        axes.set_xlim(left, right + 0.14 * (right - left))  # room for the last number
        if len(protocols) > 1:
            for protocol in protocols:
                fill = INK if protocol == protocols[-1] else PAPER
                axes.plot([], [], "o", color=INK, mfc=fill, mew=1.4, markersize=6, label=LEGEND[protocol])
            figure.legend(loc="outside lower center", ncols=2, handletextpad=0.1, columnspacing=1)
    return Figure(figure.svg, f"nDCG@10 with intervals of 95 %. {'; '.join(said)}.", "nDCG@10, with its 95 % interval")


def shares(groups: Mapping[str, tuple[int, int, int]]) -> Figure:
    """How many queries lose, stay and gain, as shares of each group.

    Args:
        groups: (gain, stay, lose) by name.
    """
    said = []
    with drawing(350, 46 + 27 * len(groups)) as (figure, axes):
        for y, (name, (gain, stay, lose)) in enumerate(groups.items()):
            start, total = 0.0, gain + stay + lose
            for count, color in ((lose, BAD), (stay, GRAY), (gain, GOOD)):
                axes.barh(-y, count / total, 0.66, left=start, color=color, alpha=0.45 if color == GRAY else 1)
                if count / total >= 0.1:
                    text = INK if color == GRAY else PAPER
                    axes.text(
                        start + count / total / 2, -y, f"{count / total:.0%}", ha="center", va="center", color=text
                    )
                start += count / total
            said.append(f"{name}: {gain} gain, {stay} stay, {lose} lose")
        axes.set_yticks([-y for y in range(len(groups))], list(groups))
        axes.tick_params(length=0, labelcolor=INK)
        axes.set(xticks=[], xlim=(0, 1), ylim=(0.5 - len(groups), 0.5))
        axes.grid(False)
        axes.spines[:].set_visible(False)
        for color, label in ((BAD, "lose"), (GRAY, "stay"), (GOOD, "gain")):
            axes.barh([0], [0], color=color, label=label, alpha=0.45 if color == GRAY else 1)
        figure.legend(loc="outside lower center", ncols=3, handlelength=1.2)
    return Figure(figure.svg, f"Stacked bars. {'; '.join(said)}.", "Queries that lose, stay and gain")
