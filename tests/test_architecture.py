"""Who may import whom."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "xbm_keras"
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
KNOW_THE_CONFIG = {
    "xbm_keras.config",
    "xbm_keras.devices",
    "xbm_keras.evaluation_tool",
    "xbm_keras.experiment",
    "xbm_keras.export_tool",
    "xbm_keras.index_tool",
    "xbm_keras.loading",
    "xbm_keras.loss_schema",
    "xbm_keras.override_text",
    "xbm_keras.run_folder",
    "xbm_keras.saved_run",
    "xbm_keras.schema",
    "xbm_keras.search_schema",
    "xbm_keras.selection",
    "xbm_keras.terminal",
    "xbm_keras.tuning.hypermodel",
    "xbm_keras.tuning.search",
    "xbm_keras.tuning.space",
    "xbm_keras.tuning.tuner",
}
STAGES_IN_ORDER = ["circular_memory", "cosine_scores", "hard_top_k", "head", "pair_losses"]


def imports_of(name):
    """Modules of ours that a module imports, written as `xbm_keras.x.y`, except to run it as a program."""
    found = set()
    tree = ast.parse(MODULES[name].read_text())
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if __name__ == '__main__':")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return {module for module in found if module.split(".")[0] == "xbm_keras"}


@pytest.mark.parametrize("name", sorted(n for n in MODULES if ".stages." in n))
def test_stages_import_only_stages(name):
    assert all(module.startswith("xbm_keras.stages.") for module in imports_of(name)), imports_of(name)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_outer_layer_knows_the_config(name):
    if {"xbm_keras.config", "xbm_keras.schema", "xbm_keras.data_schema"} & imports_of(name):
        assert name in KNOW_THE_CONFIG


def test_no_cycles():
    graph = {name: imports_of(name) & set(MODULES) for name in MODULES}

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        for other in graph[name]:
            visit(other, [*path, name])

    for name in graph:
        visit(name, [])


def test_files_are_read_in_a_sitting():
    assert not {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 350}


WRITERS = {
    "NamedTemporaryFile", "TFRecordWriter", "copy2", "copyfile", "dump", "fdopen", "imsave", "mkstemp", "move",
    "rename", "save_model", "savefig", "savetxt", "savez", "savez_compressed", "to_json", "to_parquet", "to_pickle",
    "tofile", "write_bytes", "write_out", "write_text",
}  # fmt: skip
WHOLE = {"writing_whole", "new_version"}  # what is written in such a block gets its name when the block ends
WRITE_BY_THEMSELVES = {
    ("xbm_keras.export", "save"): "a picture in memory",
    ("xbm_keras.ray_extraction", "save_model"): "a temporary folder of one process",
    ("xbm_keras.ray_extraction", "write_bytes"): "a temporary folder of one process",
    ("xbm_keras.report.figures", "savefig"): "a figure in memory",
    ("xbm_keras.report.page", "save"): "a picture in memory",
    ("xbm_keras.stages.hub_backbone", "write_text"): "one file of a folder; metrics.json, the last of a run, closes it",
    ("xbm_keras.tuning.local_workers", "open"): "what a worker prints, while it prints it",
    ("xbm_keras.versions", "rename"): "a folder that was written whole",
    ("xbm_keras.warmup", "TFRecordWriter"): "one file of a version, which new_version closes",
}


def name_of(call):
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def writes_of(node, is_whole=False):
    """Names of the calls that write a file under its own name."""
    if isinstance(node, ast.With):
        contexts = [item.context_expr for item in node.items]
        is_whole |= any(isinstance(each, ast.Call) and name_of(each) in WHOLE for each in contexts)
    if isinstance(node, ast.Call) and not is_whole:
        name, given = name_of(node), [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        if (
            name in WRITERS
            or (name in ("save", "to_csv") and node.args)  # without: of an object to its place, or as text
            or (name == "open" and any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes))
        ):
            yield name
    for child in ast.iter_child_nodes(node):
        yield from writes_of(child, is_whole)


def test_one_writer_of_whole_files():
    top = PACKAGE.parent
    programs = [top / "train.py", top / "tune.py", *(top / "examples/serve").glob("*.py")]
    files = {**MODULES, **{path.stem: path for path in programs}}
    del files["xbm_keras.atomic_files"]
    found = {(name, call) for name, path in files.items() for call in writes_of(ast.parse(path.read_text()))}
    assert found == WRITE_BY_THEMSELVES.keys()


def test_the_rule_for_writers_sees_what_it_is_to_see():
    for code in ("p.write_text(x)", "open(p, 'w')", "p.open(mode='ab')", "model.save(p)", "frame.to_csv(p)"):
        assert list(writes_of(ast.parse(code))), code
    for code in ("open(p)", "p.open('rb')", "frame.to_csv()", "with writing_whole(p) as side:\n    np.savez(side, x)"):
        assert not list(writes_of(ast.parse(code))), code
    assert list(writes_of(ast.parse("np.save(p, x)")))
