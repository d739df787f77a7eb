"""Slow, obvious oracles for the memory, the picks and the losses. They import nothing of ours."""

import collections
import math

import numpy as np


class DequeMemory:
    """The cross-batch memory as the queue that it stands for."""

    def __init__(self, memory_size: int):
        self.rows = collections.deque(maxlen=memory_size)

    def enqueue(self, features, labels, sample_ids):
        for feature, label, sample_id in zip(features, labels, sample_ids, strict=True):
            self.rows.append((tuple(feature), int(label), int(sample_id)))

    def valid_rows(self) -> list[tuple]:
        """Rows, sorted, of which no newer row has the same sample id."""
        rows = list(self.rows)
        valid = []
        for i, row in enumerate(rows):
            newer_ids = [newer[2] for newer in rows[i + 1 :]]
            if row[2] not in newer_ids:
                valid.append(row)
        return sorted(valid)


def picks_of_anchor(
    scores, label, sample_id, row_labels, row_ids, row_is_valid, *, positive, order, count
) -> list[int]:
    """Rows that one anchor is paired with, the most preferred first; of equal scores the lower index comes first.

    `order` is "highest" or "lowest" score first; `count` may be "all".
    """
    candidates = []
    for row in range(len(scores)):
        if not row_is_valid[row] or row_ids[row] == sample_id:
            continue
        if (row_labels[row] == label) == positive:
            candidates.append(row)
    if count == "all":
        return candidates
    sign = -1 if order == "highest" else 1
    return sorted(candidates, key=lambda row: (sign * scores[row], row))[:count]


def contrastive(similarities, is_positive, is_valid, positive_margin, negative_margin) -> float:
    """Per anchor, as the other losses below: lists of T numbers."""
    positives, negatives = split(similarities, is_positive, is_valid)
    pull = [max(0.0, positive_margin - s) for s in positives]
    push = [max(0.0, s - negative_margin) for s in negatives]
    return mean(pull) + mean(push)


def triplet(similarities, is_positive, is_valid, margin) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    terms = []
    for s_p in positives:
        for s_n in negatives:
            x = s_n - s_p
            terms.append(math.log(1 + math.exp(x)) if margin is None else max(0.0, x + margin))
    return mean(terms)


def semi_hard_triplet(similarities, is_positive, is_valid, margin, chosen_by=None) -> float:
    """`chosen_by` are the similarities that the triplets are chosen by, where the choice is not to change."""
    chosen_by = similarities if chosen_by is None else chosen_by
    pairs = list(zip(similarities, chosen_by, is_positive, is_valid, strict=True))
    terms = []
    for s_p, chosen_p, positive, valid in pairs:
        for s_n, chosen_n, other_positive, other_valid in pairs:
            is_triplet = valid and positive and other_valid and not other_positive
            if is_triplet and chosen_n < chosen_p < chosen_n + margin:
                terms.append(max(0.0, float(s_n) - float(s_p) + margin))
    return mean(terms)


def supcon(similarities, is_positive, is_valid, temperature) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    if not positives or not negatives:
        return 0.0
    total = sum(math.exp(s / temperature) for s in positives + negatives)
    return mean([-math.log(math.exp(s / temperature) / total) for s in positives])


def info_nce(similarities, is_positive, is_valid, temperature) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    if not positives or not negatives:
        return 0.0
    among_negatives = sum(math.exp(s / temperature) for s in negatives)
    terms = []
    for s in positives:
        own = math.exp(s / temperature)
        terms.append(-math.log(own / (own + among_negatives)))
    return mean(terms)


def nt_xent(similarities, is_positive, is_valid, temperature) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    if not positives or not negatives:
        return 0.0
    total = sum(math.exp(s / temperature) for s in positives + negatives)
    return -math.log(mean([math.exp(s / temperature) for s in positives]) / total)


def tuplet(similarities, is_positive, is_valid, margin, scale) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    if not negatives:
        return 0.0
    terms = []
    for s_p in positives:
        nearer = math.cos(max(0.0, math.acos(s_p) - margin))
        terms.append(math.log(1 + sum(math.exp(scale * (s_n - nearer)) for s_n in negatives)))
    return mean(terms)


def circle(similarities, is_positive, is_valid, margin, gamma, weights_of=None) -> float:
    """`weights_of` are the similarities that the weights are computed from, where they are not to move."""
    weights_of = similarities if weights_of is None else weights_of
    negatives, positives = 0.0, 0.0
    for s, w, positive, valid in zip(similarities, weights_of, is_positive, is_valid, strict=True):
        if valid and positive:
            positives += math.exp(-gamma * max(0.0, 1 + margin - w) * (s - (1 - margin)))
        elif valid:
            negatives += math.exp(gamma * max(0.0, w + margin) * (s - margin))
    return math.log(1 + negatives * positives)


def lifted_structure(similarities, is_positive, is_valid, margin, temperature) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    if not positives or not negatives:
        return 0.0
    pull = sum(math.exp(distance(s) / temperature) for s in positives)
    push = sum(math.exp((margin - distance(s)) / temperature) for s in negatives)
    return max(0.0, temperature * math.log(pull) + temperature * math.log(push))


def margin(similarities, is_positive, is_valid, margin, beta) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    pull = [max(0.0, margin + (distance(s) - beta)) for s in positives]
    push = [max(0.0, margin - (distance(s) - beta)) for s in negatives]
    return mean(pull) + mean(push)


def multi_similarity(similarities, is_positive, is_valid, alpha, beta, base, epsilon) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    if not positives or not negatives:
        return 0.0
    if epsilon is not None:
        lowest_positive, highest_negative = min(positives), max(negatives)
        positives = [s for s in positives if s < highest_negative + epsilon]
        negatives = [s for s in negatives if s > lowest_positive - epsilon]
    pull = math.log(1 + sum(math.exp(-alpha * (s - base)) for s in positives)) / alpha
    push = math.log(1 + sum(math.exp(beta * (s - base)) for s in negatives)) / beta
    return pull + push


def smooth_ap(similarities, is_positive, is_valid, temperature) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    if not positives or not negatives:
        return 0.0
    precisions = []
    for i, s_i in enumerate(positives):
        others = positives[:i] + positives[i + 1 :]
        rank_among_positives = 1 + sum(sigmoid((s_j - s_i) / temperature) for s_j in others)
        rank = rank_among_positives + sum(sigmoid((s_j - s_i) / temperature) for s_j in negatives)
        precisions.append(rank_among_positives / rank)
    return 1 - mean(precisions)


def recall_surrogate(similarities, is_positive, is_valid, ks, temperature, rank_temperature) -> float:
    positives, negatives = split(similarities, is_positive, is_valid)
    if not positives or not negatives:
        return 0.0
    recalls = []
    for k in ks:
        found = 0.0
        for i, s_i in enumerate(positives):
            others = positives[:i] + positives[i + 1 :] + negatives
            rank = 1 + sum(sigmoid((s_j - s_i) / temperature) for s_j in others)
            found += sigmoid((k - rank) / rank_temperature)
        recalls.append(found / min(k, len(positives)))
    return 1 - mean(recalls)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def distance(cosine: float) -> float:
    return math.sqrt(2 - 2 * cosine)


def split(similarities, is_positive, is_valid) -> tuple[list[float], list[float]]:
    positives, negatives = [], []
    for s, positive, valid in zip(similarities, is_positive, is_valid, strict=True):
        if valid:
            (positives if positive else negatives).append(float(s))
    return positives, negatives


def mean(terms: list[float]) -> float:
    return sum(terms) / len(terms) if terms else 0.0


def numerical_gradient(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences, in float64, of a function that gives a number."""
    x = np.array(x, np.float64)
    gradient = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


def cosine(a, b) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
