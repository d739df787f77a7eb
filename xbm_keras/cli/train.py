"""`train.py`: one experiment, from a config to an exported model."""

import dataclasses

from absl import flags

from xbm_keras.cli import terminal
from xbm_keras.config.yaml_files import load_config, presets, save_config
from xbm_keras.experiment import build, devices, loading, phases, resuming, run_folder, saved_run
from xbm_keras.experiment.chosen_parts import choose_parts
from xbm_keras.experiment.work import work_of
from xbm_keras.report.stage_costs import Costs, Stage

CONFIG = flags.DEFINE_string(
    "config", "default", f"YAML file of the experiment, or the name of one of the package's: {', '.join(presets())}."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; by default runs/<config>-<time>.")
SET = flags.DEFINE_multi_string("set", [], "section.key=value, over the config.")
RESUME = flags.DEFINE_enum(
    "resume", "auto", ["auto", "must", "never"], "Whether to go on with an unfinished run of the same config."
)
REPORT = flags.DEFINE_bool("report", True, "Write report.html; takes some seconds.")
VERBOSE = flags.DEFINE_bool("verbose", False, "Show the messages of the libraries below.")


def main(argv):
    """One experiment, from a config to an exported model."""
    terminal.set_up(VERBOSE.value)
    with terminal.readable_errors():
        config = load_config(CONFIG.value, SET.value)
        devices.make_strategy(config.training)  # or an error, before features are computed
        with run_folder.claim(WORKDIR.value, CONFIG.value, config, RESUME.value) as workdir:
            begun = resuming.begun_config(workdir, config)
            config = begun or config
            source = build.make_source(config)  # a wrong path is told before weights are downloaded
            backbone = build.make_backbone(config) if begun else build.make_whole_backbone(config)
            chooses_parts = not begun and backbone is not None and bool(backbone.choices)
            costs = Costs(stages_of(config, chooses_parts=chooses_parts))
            costs.begin(Stage.FEATURES)
            saved = config
            if chooses_parts:
                config = build.sized_for(config, source, backbone)
            else:
                config = build.sized(config, build.width_of(source, backbone))
            data = work_of(config).load(source, config, backbone)
            if Stage.VIEWS in costs.planned:
                costs.begin(Stage.VIEWS)
                data = loading.with_training_views(config, data, backbone)
            if Stage.PARTS in costs.planned:
                costs.begin(Stage.PARTS)
                config, data, backbone = choose_parts(config, data, backbone)
                saved = saved.model_copy(update={"backbone": config.backbone})
            elif begun and (tried := resuming.tried_parts(workdir)):
                data = dataclasses.replace(data, parts=tried)
            metrics = train(config, data, backbone, workdir, costs, saved)
    terminal.print_results(workdir, metrics, "Test queries" if config.is_of_pairs else "Test items")


def stages_of(config, has_data: bool = False, chooses_parts: bool = False) -> list[Stage]:
    """What a run does; perhaps without what makes its data, or with a choice of parts of its network."""
    is_done = {
        Stage.FEATURES: not has_data,
        Stage.VIEWS: not has_data and loading.may_view(config),
        Stage.PARTS: chooses_parts,
        Stage.REFIT: config.training.refit,
        Stage.REPORT: REPORT.value,
    }
    return [stage for stage in Stage if is_done.get(stage, True)]


def train(config, data, backbone, workdir, costs, saved):
    """Fit, evaluate, export and report, or what of it is not done yet; the metrics. `saved` is for `config.yaml`."""
    work = work_of(config)
    work.write_data(workdir, data)
    metrics = run_folder.results_of(workdir)
    if metrics is None:
        save_config(saved, workdir / "config.yaml")  # with the parts that it took, by which a finished run is opened
        head, metrics = train_and_export(work, config, data, backbone, workdir, costs)
    else:
        head = saved_run.load_head(str(workdir))
    if REPORT.value:
        finished = list(costs.end())
        costs.begin(Stage.REPORT)
        work.write_report(workdir, config, data, head, metrics, finished)
    return metrics


def train_and_export(work, config, data, backbone, workdir, costs):
    """Fit, evaluate and export; the head and the metrics."""
    try:
        model, metrics = work.run(config, data, backbone, workdir, costs)
    except phases.Interrupted as interrupt:
        run_folder.write_model(workdir, interrupt.model)
        terminal.print_kept(workdir, interrupt.epoch)
        raise
    costs.begin(Stage.SAVING)
    run_folder.write_model(workdir, model)
    work.export(workdir, model, config, metrics)
    run_folder.write_metrics(workdir, metrics)
    return model.head, metrics
