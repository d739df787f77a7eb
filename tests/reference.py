"""Slow, obvious oracle for retrieval: loops over queries, items and ranks. It imports nothing of ours."""

import numpy as np


def ranking(query, gallery, own=None) -> list[int]:
    """Positions by falling cosine similarity, in float64; of equal ones the lower position first; `own` is left out."""
    scored = []
    for position, item in enumerate(gallery):
        if position == own:
            continue
        scored.append((-cosine(query, item), position))
    return [position for _, position in sorted(scored)]


def cosine(a, b) -> float:
    """0 where one of them has no direction."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    length = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
    return float(np.sum(a * b) / length) if length else 0.0


def metrics_of_list(is_relevant: list[bool], num_relevant: int, ks) -> dict[str, float]:
    """Metrics of one query from the relevance of its ranked items."""
    found, precisions = 0, []
    for rank, relevant in enumerate(is_relevant[:num_relevant], start=1):
        if relevant:
            found += 1
            precisions.append(found / rank)
    metrics = {f"recall_at_{k}": 1.0 if any(is_relevant[:k]) else 0.0 for k in ks}
    return {**metrics, "map_at_r": sum(precisions) / num_relevant, "r_precision": found / num_relevant}


def retrieval_metrics(queries, query_labels, gallery=None, gallery_labels=None, ks=(1, 5, 10)) -> dict[str, float]:
    """Means over the queries that have a match, and how many they are; leave-one-out without a gallery."""
    leave_one_out = gallery is None
    if leave_one_out:
        gallery, gallery_labels = queries, query_labels
    per_query, num_without_match = [], 0
    for i, (query, label) in enumerate(zip(queries, query_labels, strict=True)):
        ranked = ranking(query, gallery, own=i if leave_one_out else None)
        is_relevant = [bool(gallery_labels[position] == label) for position in ranked]
        num_relevant = sum(is_relevant)
        if num_relevant == 0:
            num_without_match += 1
        else:
            per_query.append(metrics_of_list(is_relevant, num_relevant, ks))
    means = {name: float(np.mean([metrics[name] for metrics in per_query])) for name in per_query[0]}
    return {**means, "num_queries": len(per_query), "num_without_match": num_without_match}
