"""A page of items that are nearly the same, or out of place among their neighbours, to look at side by side."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from xbm_keras.data.labels import counted
from xbm_keras.evaluation.label_noise import LabelNoise
from xbm_keras.evaluation.near_duplicates import NearDuplicates
from xbm_keras.report.page import Block, Hit, Item, Page, PageSection, Paragraph, QueryResult, QueryResults, Verdict

NUM_SHOWN = 60  # items of each section
NUM_TOGETHER = 6  # items beside each


def duplicates_page(
    title: str,
    subtitle: str,
    noise: LabelNoise,
    labels: Sequence[str] | np.ndarray,
    show: Callable[[list[int]], Iterable[Item]],
) -> Page:
    """The page, the clearest first; what is beyond its room stands in the table alone.

    Args:
        title: of the page.
        subtitle: what was looked at.
        noise: what was found.
        labels: of all items, by position.
        show: previews of the items at some positions, in their order.
    """
    grouped = [_grouped(noise, pairs) for pairs in (noise.other_label, noise.same_label)]
    out = noise.out_of_place
    around = [
        (item, f"{share:.0%} of its neighbours are {label}", list(zip(row, scores, strict=True))[:NUM_TOGETHER])
        for item, label, share, row, scores in zip(
            out.item.tolist(), out.label, out.share.tolist(), out.nearest.tolist(), out.score.tolist(), strict=True
        )
    ][:NUM_SHOWN]
    parts = [*grouped, around]
    wanted = sorted({each for part in parts for item, _, near in part for each in (item, *(row[0] for row in near))})
    items = dict(zip(wanted, show(wanted), strict=True))

    def section(name: str, part: list, about: str, count: int) -> PageSection:
        results = [
            QueryResult(
                items[item],
                " · ".join(filter(None, [_caption(items[item]), note])),
                {"Beside it": [Hit(items[row], _agree(labels, item, row), score) for row, score in near]},
            )
            for item, note, near in part
        ]
        more = f" The first {len(part)} are shown; the table has all." if count > len(part) else ""
        blocks: list[Block] = [Paragraph(about + more)]
        return PageSection(name, [*blocks, QueryResults(results)] if results else [Paragraph("None.")])

    num_other, num_same, num_out = len(noise.other_label.first), len(noise.same_label.first), len(out.item)
    sections = [
        section(
            "Other labels",
            grouped[0],
            f"{counted(num_other, 'pair')} of items that are nearly the same and bear different labels: one is wrong, "
            "or the classes are one.",
            _num_groups(noise.other_label),
        ),
        section(
            "Out of place",
            around,
            f"{counted(num_out, 'item')} among neighbours of which nearly all bear one other label; ✓ the item's own, "
            "✗ another.",
            num_out,
        ),
        section(
            "Copies",
            grouped[1],
            f"{counted(num_same, 'pair')} of items that are nearly the same and of one label, or without: copies on "
            "both sides of a test make its scores too good.",
            _num_groups(noise.same_label),
        ),
    ]
    return Page(title, _verdict(num_other, num_out, num_same), sections, subtitle)


def _caption(item: Item) -> str:
    """The name, where a picture or a text does not stand for it."""
    return item.name if item.picture or item.text else ""


def _verdict(num_other: int, num_out: int, num_same: int) -> Verdict:
    if not num_other + num_out + num_same:
        return Verdict("No two items are nearly the same, and none is out of place.", "good")
    text = (
        f"{counted(num_other, 'pair')} of near-duplicates under different labels, {counted(num_out, 'item')} out of "
        f"place, {counted(num_same, 'pair')} of copies."
    )
    return Verdict(text, "bad" if num_other + num_out else "plain")


def _grouped(noise: LabelNoise, pairs: NearDuplicates) -> list[tuple[int, str, list[tuple[int, float]]]]:
    """The pairs by their first items, these in the order of their best pair."""
    near: dict[int, list[tuple[int, float]]] = {}
    identical: dict[int, int] = {}
    rows = zip(
        pairs.first.tolist(), pairs.second.tolist(), pairs.score.tolist(), noise.is_identical(pairs), strict=True
    )
    for first, second, score, is_identical in rows:
        near.setdefault(first, []).append((second, score))
        identical[first] = identical.get(first, 0) + int(is_identical)
    return [
        (first, f"{identical[first]} identical" if identical[first] else "", others[:NUM_TOGETHER])
        for first, others in itertools.islice(near.items(), NUM_SHOWN)
    ]


def _num_groups(pairs: NearDuplicates) -> int:
    return len(np.unique(pairs.first))


def _agree(labels: Sequence[str] | np.ndarray, first: int, second: int) -> bool | None:
    """Whether two items bear the same label; None where one has none."""
    return labels[first] == labels[second] if labels[first] and labels[second] else None
