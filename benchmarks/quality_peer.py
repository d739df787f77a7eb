"""A linear head by pytorch-metric-learning with its CrossBatchMemory; benchmarks.quality runs it in its own process.

    python quality_peer.py given.npz made.npz LOSS SEEDS

Recipe: AdamW at 5e-4, 32 x 4 items a batch, a memory of all training items, at most 12 epochs. The epoch is the best
one on the validation classes, with the first seed; then training is repeated on all training classes for that many,
with each seed.
"""

import sys

import numpy as np
import torch
from pytorch_metric_learning import losses, miners, samplers
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

EPOCHS, CLASSES, PER_CLASS, RATE = 12, 32, 4, 5e-4


def make_loss(name: str, width: int, memory_size: int):
    inner, miner = {
        "contrastive": (losses.ContrastiveLoss(0.1, 0.6), miners.PairMarginMiner(0.1, 0.6)),
        "multi_similarity": (losses.MultiSimilarityLoss(2, 50, 0.5), miners.MultiSimilarityMiner(0.1)),
        "nt_xent": (losses.NTXentLoss(0.05), None),
        "triplet": (losses.TripletMarginLoss(0.1), miners.TripletMarginMiner(0.1, "semihard")),
    }[name]
    return losses.CrossBatchMemory(inner, width, memory_size, miner)


def map_at_r(embeddings: torch.Tensor, labels: torch.Tensor) -> float:
    calculator = AccuracyCalculator(
        include=("mean_average_precision_at_r",),
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),  # the default needs faiss
    )
    return calculator.get_accuracy(embeddings, labels)["mean_average_precision_at_r"]


def train(features, labels, width: int, start, loss_name: str, epochs: int, seed: int, score=None):
    """The head, and the scores of all epochs, epoch 0 first."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    head = torch.nn.Linear(features.shape[1], width)
    if start is not None:
        kernel, bias = start
        head.weight.data, head.bias.data = torch.from_numpy(kernel.T.copy()), torch.from_numpy(bias)
    loss = make_loss(loss_name, width, len(features))
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.0)
    classes = min(CLASSES, len(torch.unique(labels)))
    batch_size = classes * PER_CLASS
    sampler = samplers.MPerClassSampler(labels, PER_CLASS, batch_size, max(len(features), batch_size))
    scores = [score(head)] if score else []
    for _ in range(epochs):
        order = torch.tensor(list(sampler))
        for chosen in order.split(batch_size):
            optimizer.zero_grad()
            loss(head(features[chosen]), labels[chosen]).backward()
            optimizer.step()
        if score:
            scores.append(score(head))
    return head, scores


def main():
    given, made, loss_name, seeds = sys.argv[1:]
    torch.set_num_threads(2)
    data = {name: torch.from_numpy(array) for name, array in np.load(given).items()}
    starts = {
        phase: (data[f"{phase}_kernel"].numpy(), data[f"{phase}_bias"].numpy()) if f"{phase}_kernel" in data else None
        for phase in ("select", "refit")
    }

    @torch.no_grad()
    def score(head):
        return map_at_r(torch.nn.functional.normalize(head(data["validation"])), data["validation_labels"])

    width = int(data["width"])
    _, scores = train(data["train"], data["train_labels"], width, starts["select"], loss_name, EPOCHS, 0, score)
    epochs = int(np.argmax(scores))
    features = torch.cat([data["train"], data["validation"]])
    labels = torch.cat([data["train_labels"], data["validation_labels"]])
    embeddings = []
    for seed in range(int(seeds)):
        head, _ = train(features, labels, width, starts["refit"], loss_name, epochs, seed)
        with torch.no_grad():
            embeddings.append(torch.nn.functional.normalize(head(data["test"])).numpy())
    np.savez(made, embeddings=np.stack(embeddings), epochs=epochs)


if __name__ == "__main__":
    main()
