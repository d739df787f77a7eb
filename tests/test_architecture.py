"""Who may import whom."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "xbm_keras"
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
KNOW_THE_CONFIG = {
    "xbm_keras.config",
    "xbm_keras.evaluation_tool",
    "xbm_keras.experiment",
    "xbm_keras.export_tool",
    "xbm_keras.index_tool",
    "xbm_keras.loading",
    "xbm_keras.loss_schema",
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
