"""Where a file goes, and who may import whom: each sentence of CONTRIBUTING.md's rule is a test here."""

import ast
import collections
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "xbm_keras"
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
FOLDERS = [
    "cli", "tuning", "experiment", "config", "report", "serve", "index", "export", "training", "evaluation", "model",
    "feature_cache", "stages", "data",
]  # fmt: skip
"""From top to bottom: a folder imports from those below it."""
KNOW_THE_CONFIG = FOLDERS[: FOLDERS.index("config") + 1]
BOXES = ["backbone", "circular_memory", "cosine_scores", "hard_top_k", "head", "pair_losses"]
"""In the order of the picture, which is that of the alphabet."""
MAX_FILES_AT_THE_TOP = 5
MAX_LINES = 350


def imports_of(tree):
    """Modules of ours that some code imports, written as `xbm_keras.x.y`, `__main__` blocks and functions included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            full = {f"{node.module}.{a.name}" for a in node.names}
            found |= {each if each in MODULES or f"{each}.__init__" in MODULES else node.module for each in full}
            if node.module == "xbm_keras" and [a.name for a in node.names] == ["__version__"]:
                found.discard("xbm_keras")
    return {module for module in found if module.split(".")[0] == "xbm_keras"}


IMPORTS = {name.removesuffix(".__init__"): imports_of(ast.parse(path.read_text())) for name, path in MODULES.items()}


def folder_of(module):
    """The folder of the package that a module is in; "" for a file at the top."""
    return parts[1] if len(parts := module.split(".")) > 2 or parts[-1] in FOLDERS else ""


def box_of(module):
    return module.split(".")[2] if folder_of(module) == "stages" and module.count(".") > 1 else None


def test_the_list_of_folders_is_that_of_the_package():
    assert sorted(FOLDERS) == sorted({p.parent.name for p in PACKAGE.glob("*/__init__.py")})
    assert sorted(BOXES) == BOXES
    inside = {path.stem for path in (PACKAGE / "stages").iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert inside == set(BOXES)


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_a_folder_imports_only_from_those_below_it(name):
    if name == "xbm_keras":
        return
    folder = folder_of(name)
    below = FOLDERS[FOLDERS.index(folder) + 1 :] if folder else []
    for module in IMPORTS[name]:
        assert module != "xbm_keras", "from the folder that a name is of, not from the package"
        assert folder_of(module) in ("", folder, *below), module


def test_the_page_for_contributors_says_what_is_there():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == FOLDERS
    assert re.search(r"the boxes: (.*), each", page)[1] == ", ".join(f"`{box}`" for box in BOXES)
    lists = re.findall(r"list `(\w+)` in\s+`([\w/.]+)`", page)
    assert len(lists) == 3
    for name, path in lists:
        assert re.search(rf"^ *{name} = ", (PACKAGE / path).read_text("utf-8"), re.MULTILINE), path
    places = re.findall(r"`((?:tests|docs|\.ci|data|stages|config)/[\w/.]+)`|\]\(([\w/.]+)\)", page)
    for place in filter(None, sum(places, ())):
        assert (PACKAGE / place).exists() or (PACKAGE.parent / place).exists(), place


def test_nothing_imports_a_command():
    assert not {name for name, found in IMPORTS.items() if folder_of(name) != "cli" and "cli" in map(folder_of, found)}


@pytest.mark.parametrize("name", sorted(name for name in IMPORTS if box_of(name)))
def test_a_box_imports_only_boxes_before_it(name):
    before = BOXES[: BOXES.index(box_of(name)) + 1]
    assert {box for module in IMPORTS[name] if (box := box_of(module))} <= set(before)


PRODUCTS = {"matmul", "einsum", "tensordot", "dot", "vecdot"}
MULTIPLY_OTHERS = {
    "xbm_keras.stages.backbone.resizing": "pixels with the weights of their neighbours",
    "xbm_keras.stages.hard_top_k.sketch": "features with a projection, and with themselves for it",
    "xbm_keras.stages.head.fc_layer": "features with the weights",
    "xbm_keras.stages.head.neighbor_scatter": "closed forms: training items with each other, on the host",
    "xbm_keras.stages.head.pair_starts": "closed forms: moments of queries and documents, on the host",
    "xbm_keras.stages.head.starts": "closed forms: moments of features, on the host",
}
"""What multiplies something else than anchors with rows, and what."""


def multiplies(tree):
    return any(
        (isinstance(node, ast.Call) and name_of(node) in PRODUCTS)
        or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult))
        for node in ast.walk(tree)
    )


def test_anchors_are_multiplied_with_rows_in_one_place():
    inside = {name for name in MODULES if box_of(name)}
    found = {name for name in inside if multiplies(ast.parse(MODULES[name].read_text()))}
    assert found == {"xbm_keras.stages.cosine_scores", *MULTIPLY_OTHERS}
    head = ast.parse(MODULES["xbm_keras.stages.head.fc_layer"].read_text())
    (compare,) = (node for node in ast.walk(head) if getattr(node, "name", "") == "compare")
    assert not multiplies(compare)  # of the file that has weights to multiply
    assert multiplies(ast.parse("a @ b"))


def test_no_circles():
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in IMPORTS.get(name, ()):
                visit(other, [*path, name])
            done.add(name)

    for name in IMPORTS:
        visit(name, [])


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_only_config_experiment_tuning_and_cli_know_the_yaml(name):
    if folder_of(name) not in KNOW_THE_CONFIG and name in MODULES:
        nodes = [node for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.Import)]
        assert not {"omegaconf", "pydantic"} & {alias.name for node in nodes for alias in node.names}


def test_a_file_at_the_top_serves_three_folders():
    top = [name for name in MODULES if name.count(".") == 1 and not name.endswith("__init__")]
    assert len(top) + 1 <= MAX_FILES_AT_THE_TOP
    for name in top:
        users = {folder_of(other) for other, found in IMPORTS.items() if name in found} - {""}
        assert len(users) >= 3, (name, users)
        assert not {folder_of(module) for module in IMPORTS[name]} - {""}, f"{name} knows nothing of the folders"


def test_the_tests_mirror_the_folders():
    tests = PACKAGE.parent / "tests"
    for path in tests.rglob("test_*.py"):
        folder = path.parent.relative_to(tests)
        assert (
            folder.parts[:1] in ((), ("examples",), ("benchmarks",))
            or (PACKAGE / folder).is_dir()
            or (PACKAGE / folder.parent / f"{folder.name}.py").exists()
        ), path


def test_one_name_is_one_class():
    """A section of the config may bear the name of the class that it feeds."""
    places = collections.defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    feeds = {name for name, where in places.items() if sorted(map(folder_of, where)) == ["config", "data"]}
    assert not {name: where for name, where in places.items() if len(where) > 1 and name not in feeds}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_lists_its_files(folder):
    """In the order in which to read them, each by the name of its module."""
    listed = re.findall(r"\w+", ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())))
    files = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__", "__main__"}
    assert not files - set(listed)


def test_files_are_read_in_a_sitting():
    assert not {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > MAX_LINES}


def test_the_rules_see_what_they_are_to_see():
    found = imports_of(ast.parse("if __name__ == '__main__':\n    from xbm_keras.cli import train"))
    assert found == {"xbm_keras.cli.train"}
    found = imports_of(ast.parse("def f():\n    import xbm_keras.model.xbm_model as m"))
    assert found == {"xbm_keras.model.xbm_model"}
    assert folder_of("xbm_keras.cli.train") == folder_of("xbm_keras.cli") == "cli"
    assert folder_of("xbm_keras.progress") == folder_of("xbm_keras") == ""
    assert box_of("xbm_keras.stages.head.starts") == "head"
    assert box_of("xbm_keras.stages.cosine_scores") == "cosine_scores"
    assert box_of("xbm_keras.stages") is None


WRITERS = {
    "NamedTemporaryFile", "TFRecordWriter", "copy2", "copyfile", "dump", "fdopen", "imsave", "mkstemp", "move",
    "rename", "save_model", "savefig", "savetxt", "savez", "savez_compressed", "to_json", "to_parquet", "to_pickle",
    "tofile", "write_bytes", "write_out", "write_text",
}  # fmt: skip
WHOLE = {
    "writing_whole",
    "writing_folder",
    "new_version",
}  # what is written in such a block gets its name when the block ends
WRITE_BY_THEMSELVES = {
    ("xbm_keras.export.saved_model", "save"): "a picture in memory",
    ("xbm_keras.feature_cache.ray_extraction", "save_model"): "a temporary folder of one process",
    ("xbm_keras.feature_cache.ray_extraction", "write_bytes"): "a temporary folder of one process",
    ("xbm_keras.report.figures", "savefig"): "a figure in memory",
    ("xbm_keras.report.page", "save"): "a picture in memory",
    ("xbm_keras.stages.backbone.hub", "write_text"): "one file of a folder; metrics.json, the last of a run, closes it",
    ("xbm_keras.tuning.local_workers", "open"): "what a worker prints, while it prints it",
    ("xbm_keras.index.usearch_graph", "save"): "one file of a version, which new_version closes",
    ("xbm_keras.export.serving_requests", "TFRecordWriter"): "one file of a version, which new_version closes",
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
    programs = [top / "train.py", top / "tune.py"]
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
