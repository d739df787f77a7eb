"""The recipe: from a config to stages, from stages to results, and what a run leaves behind.

- phases: a run from above: select, refit, test
- held_out: `training.folds`: which training classes are held out, and how starts fare on them
- selection: what is chosen by them: views, start, epoch; chosen_head: what may be chosen of a head; chosen_parts: of a
  network
- learning, preview: whether more data would help, and whether a head would
- fitting: the same as one call, of data at hand
- build, loading: from a config to stages, and to the features of all items
- compression: the fewest bytes that keep a promise; trials: the searches that it is measured by
- work: what of this differs with the data
- pair_loading, pair_starts, pair_phases, pair_folder, pair_learning: for queries and documents
- devices: which of this machine train
- run_folder, run_facts, saved_run: what a run leaves, and how it is opened again; resuming: how it goes on
- indexing: a run and its index; averaging: the embeddings of both, averaged over views
"""
