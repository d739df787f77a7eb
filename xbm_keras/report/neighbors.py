"""What a report shows of test items without labels: which neighbours the head keeps."""

import numpy as np

from xbm_keras.data.dataset import Dataset
from xbm_keras.data.unit_rows import UnitRows
from xbm_keras.evaluation.exact_search import find_nearest, pair_similarities
from xbm_keras.evaluation.retrieval import embed
from xbm_keras.report.page import Block, Hit, Paragraph, QueryResult, QueryResults
from xbm_keras.report.retrieval import preview_items
from xbm_keras.stages.head.fc_layer import Head

NUM_QUERIES = 8
NUM_FOUND = 5
NUM_KEPT = 10  # a neighbour is kept where it is among so many of the frozen features'


def searches(dataset: Dataset, head: Head) -> list[Block]:
    """Queries drawn at random, with their nearest items under frozen features and head."""
    test = dataset.splits.test
    rows = UnitRows(dataset.features, test)
    vectors = {"frozen": np.asarray(rows), "trained": embed(head, rows)}
    queries = np.sort(np.random.default_rng(0).permutation(len(test))[:NUM_QUERIES])
    found = {}
    for name, each in vectors.items():
        positions = find_nearest(each[queries], each, NUM_KEPT, queries)
        places = np.repeat(queries, positions.shape[1])
        found[name] = positions, pair_similarities(each, places, positions.ravel()).reshape(positions.shape)
    wanted = np.unique([queries, *(row for positions, _ in found.values() for row in positions[:, :NUM_FOUND].T)])
    items = dict(zip(wanted.tolist(), preview_items(dataset, wanted), strict=True))
    searched = []
    for i, query in enumerate(queries.tolist()):
        rankings = {}
        for name, (positions, similarities) in found.items():
            is_kept = np.isin(positions[i, :NUM_FOUND], found["frozen"][0][i])
            hits = zip(positions[i, :NUM_FOUND].tolist(), is_kept.tolist(), similarities[i].tolist(), strict=False)
            title = name.capitalize() if name == "frozen" else f"Trained: {is_kept.sum()} of {NUM_FOUND} kept"
            rankings[title] = [Hit(items[position], kept, value) for position, kept, value in hits]
        searched.append(QueryResult(items[query], "", rankings))
    about = Paragraph(
        f"Items drawn at random, each with its {NUM_FOUND} nearest ones, nearest first; \N{CHECK MARK} among the "
        f"{NUM_KEPT} nearest by the frozen features."
    )
    return [about, QueryResults(searched)]
