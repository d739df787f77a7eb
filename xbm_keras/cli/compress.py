"""`xbm-keras compress`: the fewest bytes that keep a promise, found on held-out items and exported."""

from xbm_keras.cli import parsers, terminal
from xbm_keras.config.yaml_files import ConfigError, load_config
from xbm_keras.evaluation.promises import Promise, Trial, parse_promises
from xbm_keras.experiment import compression, run_folder, saved_run
from xbm_keras.experiment.compression import Candidate, Cut
from xbm_keras.experiment.trials import trials_of
from xbm_keras.index.coded_search import SearchForm
from xbm_keras.report.compression import Tried, write_compression_page
from xbm_keras.report.page import Verdict

PAGE = "compress.html"


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 2 where it cannot be done, 1 where nothing keeps the promise."""
    options = parsers.compress().parse_args(arguments)
    terminal.set_up()
    with terminal.readable_errors():
        return compress(options.model, parse_promises(options.target), options.bytes == "all")
    return 0


def compress(model: str, promises: tuple[Promise, ...], counts_all: bool) -> int:
    """Walk, export and say what it came to; 1 where nothing keeps the promise."""
    run = saved_run.run_of(model)
    head = saved_run.load_head(model)
    metrics = run_folder.read_record(run / "metrics.json") if (run / "metrics.json").is_file() else None
    if metrics is None:
        raise ConfigError(f"Received --model {run}, which holds no metrics.json; expected a finished run.")
    trials = trials_of(saved_run.load_data(model, finds_held_out=True))
    held_out_head = compression.held_out_head(run, head)
    held_out = trials.held_out(promises)
    trial, tried = held_out.trial, compression.walk(held_out, held_out_head)
    asked = " and ".join(map(str, promises))
    chosen = compression.smallest(trial, tried, counts_all)
    frozen = next(each for each in tried if each.cut == Cut("frozen", 0, trial.gallery.shape[1]))
    size = frozen.form.bytes_in_memory
    if chosen is None:
        near = compression.nearest_to_it(trial, tried)
        lines = [f"Nothing keeps {asked} on {_held_out(trial)}. {_nearest(near, promises)}"]
        verdict = Verdict(lines[0], "bad")
    else:
        lines = [_chosen(chosen, promises, size, trial)]
        verdict = Verdict(lines[0], "good")
        if (testing := trials.test(promises)) is None:
            lines.append("The data have no test items that could tell what the promise came to.")
        else:
            embeddings = compression.final_embeddings(trials, head, chosen.cut.source)
            on_test = compression.tested(testing[0], embeddings, chosen)
            is_kept = all(p.is_kept_by(m) for p, m in zip(promises, on_test.means, strict=True))
            lines.append(_on_test(on_test, promises, testing[1], is_kept))
            verdict = Verdict(" ".join(lines), "good" if is_kept else "plain")
    points = {id(each): _tried(each, trial, counts_all) for each in tried}
    write_compression_page(
        run / PAGE,
        f"{run.name}: {asked}",
        verdict,
        list(points.values()),
        promises[0].name,
        promises[0].least,
        (size, frozen.means[0]),
        points.get(id(chosen)),
        "bytes of an item, in all" if counts_all else "bytes of an item that a search reads",
        trials.how,
    )
    for line in lines:
        print(line)
    if chosen is not None:
        config = load_config(str(run / "config.yaml"), is_finished=True)
        network = saved_run.load_model(model)
        said = " ".join(lines)
        print(compression.export(run, network, config, metrics, trials, held_out_head, chosen, said))
    print(run / PAGE)
    return 0 if chosen is not None else 1


def _held_out(trial: Trial) -> str:
    return f"{len(trial.queries):,} held-out queries"


def _bytes(form: SearchForm, frozen: int) -> str:
    """What an item takes, and what that is of the frozen features."""
    searched, on_disk = form.bytes_in_memory, form.bytes_on_disk
    said = f"{searched:,} bytes of an item are searched, 1/{frozen / searched:,.1f} of the frozen {frozen:,}"
    if on_disk:
        total = searched + on_disk
        said += f"; {on_disk:,} more are read of candidates alone, in all {total:,}, 1/{frozen / total:,.1f}"
    return said


def _values(candidate: Candidate, promises: tuple[Promise, ...]) -> str:
    return ", ".join(
        f"{promise.name} {mean:.3f} (surely {bound:.3f})" if bound < mean else f"{promise.name} {mean:.3f}"
        for promise, mean, bound in zip(promises, candidate.means, candidate.bounds, strict=True)
    )


def _chosen(candidate: Candidate, promises: tuple[Promise, ...], frozen: int, trial: Trial) -> str:
    asked = " and ".join(map(str, promises))
    return (
        f"The fewest bytes that surely keep {asked}: {candidate}. {_bytes(candidate.form, frozen)}. On "
        f"{_held_out(trial)}: {_values(candidate, promises)}."
    )


def _nearest(candidate: Candidate, promises: tuple[Promise, ...]) -> str:
    return f"The nearest comes {candidate}: {_values(candidate, promises)}. Nothing is exported; promise less."


def _on_test(candidate: Candidate, promises: tuple[Promise, ...], who: str, is_kept: bool) -> str:
    said = f"On {who} it came to {_values(candidate, promises)}: "
    return said + ("kept." if is_kept else "NOT KEPT. They are more, or others, than the held-out ones: promise more.")


def _tried(candidate: Candidate, trial: Trial, counts_all: bool) -> Tried:
    form = candidate.form
    ranked = f"{form.rescore} k by {form.rank}" if form.rank else ""
    size, means = compression.size_of(form, counts_all), (candidate.means[0], candidate.bounds[0])
    return Tried(
        str(candidate.cut), form.width, form.search, ranked, size, form.bytes_on_disk, *means,
        candidate.is_kept(trial),
    )  # fmt: skip
