"""What docs/reliability.md says of trust: what is read as data runs no code, and programs of others are not fetched."""

import ast
import functools
import json
import pathlib
import tomllib
import zipfile

import keras
import numpy as np
import pytest
import yaml

from tests.cli.runs import fails, folder_of_pictures
from tests.conftest import ROOT
from xbm_keras import Backbone
from xbm_keras.config.yaml_files import ConfigError, check_config, load_config
from xbm_keras.data import arrays, tfds
from xbm_keras.data.sources import DataError
from xbm_keras.experiment import build, saved_run
from xbm_keras.feature_cache.cache import compute_features
from xbm_keras.index import galleries
from xbm_keras.index.gallery import Gallery

MARK = "made by code that was read"
RUNS_CODE = {
    "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "torch.load", "marshal.loads",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "keras.config.enable_unsafe_deserialization",
    "os.system", "shelve.open",
}  # fmt: skip


class Bomb:
    """Its pickle writes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.write_text, (self.path, MARK)


@pytest.fixture
def mark(tmp_path):
    """A file that must not come to be."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists()


def test_the_pickle_of_a_bomb_would_write_the_file(tmp_path):
    """Else no test here could fail."""
    np.save(tmp_path / "x.npy", np.array([Bomb(tmp_path / "mark")], object), allow_pickle=True)
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert (tmp_path / "mark").read_text() == MARK


@pytest.mark.parametrize("what", ["features", "label", "images", "test_path"])
def test_arrays_of_objects_are_refused(mark, tmp_path, what):
    bomb, numbers = np.full(4, Bomb(mark), object), np.ones((4, 2), np.float32)
    good_arrays = {"features": numbers, "images": np.ones((4, 2, 2), np.uint8)}
    np.savez(tmp_path / "bomb.npz", **{**good_arrays, "images" if what == "test_path" else what: bomb})
    np.savez(tmp_path / "good.npz", images=np.ones((4, 2, 2), np.uint8))
    bad, good = str(tmp_path / "bomb.npz"), str(tmp_path / "good.npz")
    source, files = arrays.Features, [bad]
    if what in ("images", "test_path"):
        source, files = arrays.ImageArray, [bad] if what == "images" else [good, "images", None, None, False, bad]
    with pytest.raises(DataError):
        source(*files)


def test_a_lone_array_of_objects_is_refused(mark, tmp_path):
    np.save(tmp_path / "bomb.npy", np.full(4, Bomb(mark), object), allow_pickle=True)
    np.save(tmp_path / "good.npy", np.ones((4, 2), np.float32))
    with pytest.raises(DataError):
        arrays.Features(str(tmp_path / "bomb.npy"))
    with pytest.raises(ValueError, match="Python objects"):
        arrays.Features(str(tmp_path / "good.npy"), labels=str(tmp_path / "bomb.npy"))


def test_an_index_whose_vectors_are_objects_is_refused(mark, tmp_path):
    gallery = Gallery.of(np.eye(2, dtype=np.float32), ["a", "b"])
    about = galleries.write_index(tmp_path / "index", gallery, "model")
    about.pop("segments")  # as an earlier release wrote it
    (tmp_path / "index/1/search.json").unlink()
    (tmp_path / "index/1/index.json").write_text(json.dumps(about))
    np.save(tmp_path / "index/1/vectors.npy", np.full((2, 2), Bomb(mark), object), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays"):
        galleries.read_index(tmp_path / "index")


def test_a_feature_cache_of_objects_is_refused(mark, tmp_path):
    np.savez(tmp_path / "x.npz", images=np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3))
    network = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten()])
    backbone, source = Backbone(network, image_size=(2, 2)), arrays.ImageArray(str(tmp_path / "x.npz"))
    compute_features(source, backbone, str(tmp_path / "cache"))
    (shard,) = (tmp_path / "cache").rglob("shard-*.npy")
    np.save(shard, np.full((4, 12), Bomb(mark), object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"Object arrays|pickle|objects"):
        compute_features(source, backbone, str(tmp_path / "cache")).rows[np.arange(4)]


def rewritten(path, change):
    """A `.keras` file whose config was changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, "config.json": json.dumps(config)}.items():
            archive.writestr(name, content)
    return path


def lambda_of_bytecode(path, mark):
    keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Lambda(lambda x: x + 1)]).save(path)


def lambda_of_a_function(path, mark):
    keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Lambda(lambda x: x + 1)]).save(path)

    def change(config):
        function = {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}
        config["config"]["layers"][1]["config"] |= {"function": function, "arguments": {"command": f"touch {mark}"}}

    rewritten(path, change)


def class_of_another_module(path, mark):
    keras.Sequential([keras.Input((4, 4, 3)), keras.layers.ReLU()]).save(path)

    def change(config):
        config["config"]["layers"][1] = {
            "module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", str(mark)]},
            "registered_name": None,
        }  # fmt: skip

    rewritten(path, change)


def vocabulary_of_the_machine(path, mark):
    """As an absolute path, which Keras before 3.12 reads."""
    layers = [keras.Input((1,), dtype="string"), keras.layers.StringLookup(vocabulary=["a"])]
    keras.Sequential(layers).save(path)

    def change(config):
        config["config"]["layers"][1]["config"] |= {"vocabulary": str(ROOT / "LICENSE"), "vocabulary_size": None}

    rewritten(path, change)


def garbage(path, mark):
    path.write_bytes(b"PK\3\4 no archive")


KERAS_FILES = [lambda_of_bytecode, lambda_of_a_function, class_of_another_module, vocabulary_of_the_machine, garbage]


@pytest.mark.parametrize("make", KERAS_FILES)
def test_a_keras_file_runs_and_reads_nothing(make, mark, tmp_path, capsys):
    path = tmp_path / "net.keras"
    make(path, mark)
    with pytest.raises(ValueError, match=r"^Received '.*net\.keras', which cannot be loaded: "):
        Backbone.from_file(str(path))
    data = {"source": "image_folder", "root": folder_of_pictures(tmp_path / "photos")}
    config = {"data": data, "backbone": {"kind": "file"}}
    config["backbone"]["path"] = str(path)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    assert "cannot be loaded" in fails(tmp_path / "x.yaml", tmp_path / "run", capsys=capsys)


@pytest.mark.parametrize("make", KERAS_FILES)
def test_a_run_of_others_runs_and_reads_nothing(make, mark, tmp_path):
    make(tmp_path / "model.keras", mark)
    with pytest.raises(ConfigError, match=r"^Received '.*model\.keras', which cannot be loaded: "):
        saved_run.load_head(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:os.system ['touch {mark}']",
        "data: !!python/object/new:subprocess.Popen [['touch', '{mark}']]",
        "data: {{source: '${{eval:1}}'}}",
        "data: {{source: '${{oc.create:{{}}}}'}}",
    ],
)
def test_a_config_runs_nothing(mark, tmp_path, text):
    (tmp_path / "x.yaml").write_text(text.format(mark=mark))
    with pytest.raises(ConfigError):
        load_config(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("name", ["huggingface:mnist", "user:things", "kaggle:a/b:1.0.0", "huggingface:user__things"])
def test_data_sets_of_strangers_are_not_fetched_unless_asked_for(monkeypatch, name):
    asked = []

    def builder(name, **_):
        asked.append(name)
        raise RuntimeError("no connection")

    monkeypatch.setattr(tfds.tfds, "builder", builder)
    with pytest.raises(DataError, match=r"of the namespace '(huggingface|user|kaggle)'.*data\.allow_community=true"):
        tfds.TFDS(name)
    assert asked == []
    with pytest.raises(DataError, match="no connection"):
        tfds.TFDS(name, allow_community=True)
    assert asked == [name]


@pytest.mark.parametrize("name", ["cars196", "cars196:2.1.0", "my_things/large:1.0.0"])
def test_own_data_sets_need_no_asking(monkeypatch, name):
    monkeypatch.setattr(
        tfds.tfds, "builder", lambda name, **_: (_ for _ in ()).throw(RuntimeError(f"asked for {name}"))
    )
    with pytest.raises(DataError, match=f"asked for {name}"):
        tfds.TFDS(name)


def test_the_key_of_strangers_data_sets_reaches_the_source(monkeypatch):
    values = {
        "data": {"source": "tfds", "name": "user:things", "allow_community": True},
        "backbone": {"kind": "keras_applications", "name": "MobileNetV2"},
    }
    taken = []

    @functools.wraps(tfds.TFDS.__init__)
    def init(self, **arguments):
        taken.append(arguments)

    monkeypatch.setattr(tfds.TFDS, "__init__", init)
    build.make_source(check_config(values, "x"))
    assert taken[0]["allow_community"] is True


def test_keras_is_new_enough_to_be_safe():
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (keras_floor,) = (each.removeprefix("keras>=").split(",")[0] for each in requirements if each.startswith("keras>="))
    assert tuple(map(int, keras_floor.split("."))) >= (3, 12)


@pytest.mark.parametrize("path", sorted((ROOT / "xbm_keras").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_reads_by_means_that_run_code(path):
    """Ray, which pickles, is the one exception, and docs/reliability.md says so."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
        assert name not in RUNS_CODE, ast.unparse(node)
        assert options.get("shell") != "True", ast.unparse(node)
        assert options.get("safe_mode") != "False" or path.stem == "ray_extraction", ast.unparse(node)
        if name == "np.load":  # a memory map, np.lib.format.open_memmap, refuses objects by itself
            assert options.get("allow_pickle") == "False", ast.unparse(node)
