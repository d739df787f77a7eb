"""What a user can get wrong in a config, and what they are told."""

import pathlib

import pytest

from xbm_keras.config import ConfigError, load_config, save_config
from xbm_keras.experiment import LOSSES
from xbm_keras.schema import SupCon

MINIMAL = "data: {source: features, path: x.npz}\nbackbone: {kind: none}\n"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(MINIMAL)
    return str(file)


def test_values_come_from_defaults_file_and_overrides_in_this_order(path):
    pathlib.Path(path).write_text(MINIMAL + "training: {epochs: 7, learning_rate: 1e-3}\n")
    config = load_config(path, ["training.epochs=9"])
    assert config.training.epochs == 9
    assert config.training.learning_rate == 0.001  # a float, though YAML 1.1 reads 1e-3 as text
    assert config.head.embedding_dim == 128


def test_parameters_without_a_name_are_those_of_the_default_loss(path):
    assert load_config(path, ["loss.temperature=0.5"]).loss == SupCon(name="supcon", temperature=0.5)


def test_every_loss_runs_again_as_it_is(path, tmp_path):
    for name in LOSSES:
        config = load_config(path, [f"loss.name={name}"])
        save_config(config, tmp_path / "again.yaml")
        assert load_config(str(tmp_path / "again.yaml")) == config
        LOSSES[name](**config.loss.model_dump(exclude={"name"}))
    assert load_config(path, ["loss.name=recall_surrogate", "loss.ks=[1,3]"]).loss.ks == [1, 3]


def test_environment_variables_have_defaults(path, monkeypatch):
    pathlib.Path(path).write_text(MINIMAL.replace("x.npz", "'${oc.env:SOME_FOLDER,here}/x.npz'"))
    assert load_config(path).data.path == "here/x.npz"
    monkeypatch.setenv("SOME_FOLDER", "/there")
    assert load_config(path).data.path == "/there/x.npz"


def test_the_resolved_config_runs_again_as_it_is(path, tmp_path):
    config = load_config(path, ["loss.name=triplet", "loss.margin=null", "training.learning_rate=1e-5"])
    save_config(config, tmp_path / "again.yaml")
    assert load_config(str(tmp_path / "again.yaml")) == config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.epoch=3"], "training.epoch: unknown key; did you mean 'epochs'?"),
        (["memori.memory_size=3"], "memori: unknown key; did you mean 'memory'?"),
        (["training.qqqq=1"], "training.qqqq: unknown key; known here: averaging, batch_size, checkpoint_ev"),
        (["training.epochs=many"], "training.epochs: received 'many'; input should be a valid integer"),
        (["training.epochs=1.5"], "training.epochs: received 1.5"),
        (["training.learning_rate=.inf"], "training.learning_rate: received inf"),
        (["training.learning_rate=-1"], "training.learning_rate: received -1"),
        (["top_k.num_negatives=0", "top_k.num_positives=0"], "top_k: num_negatives and num_positives are both 0"),
        (["top_k.num_negatives=some"], "top_k.num_negatives: received 'some'"),
        (["loss.name=contrastive", "loss.positive_margin=1.5"], "loss.positive_margin: received 1.5"),
        (
            ["loss.name=contrastve"],
            "loss.name: received 'contrastve'; expected one of contrastive, margin, multi_similarity",
        ),
        (["loss.margin=0.2"], "loss.margin: unknown key; known here: name, temperature"),
        (["data.split.test_fraction=1.2"], "data.split.test_fraction: received 1.2"),
        (["data.split.test_fraction=0"], "data.split.test_fraction: received 0"),
        (["data.source=image_foldr"], "did you mean 'image_folder'?"),
        (["data.source=image_folder", "data.path=null"], "data.root: missing; it has no default"),
        (["memory.memory_size=64"], "memory.memory_size 64 is smaller than the batch of 128"),
        (["memory.memory_size=-1"], "memory.memory_size: received -1"),
        (["backbone.kind=keras_file", "backbone.path=x"], "'features' does not go with backbone.kind 'keras_file'"),
        (["training.warmup=0.1"], "training.warmup 0.1 does not go with training.schedule 'growing'"),
        (["training.averaging=1"], "training.averaging: received 1"),
        (["cache.views=2"], "cache.views 2 does not go with data.source 'features'"),
        (["cache.turned_classes=true"], "cache.turned_classes does not go with data.source 'features'"),
        (["training=5"], "training: received 5"),
        (["training.epochs"], "--set 'training.epochs'; expected section.key=value"),
    ],
)
def test_what_is_wrong_is_named(path, overrides, expected):
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    assert expected in str(raised.value)


def test_turned_classes_need_classes():
    settings = ["loss.name=similarity_alignment", "cache.turned_classes=true"]
    with pytest.raises(ConfigError, match=r"and loss\.name 'similarity_alignment'; it takes pictures and labels"):
        load_config("configs/image_folder.yaml", ["data.root=x", *settings])


def test_all_problems_are_told_at_once(path):
    with pytest.raises(ConfigError) as raised:
        load_config(path, ["training.epoch=3", "head.kind=cubic"])
    assert "training.epoch" in str(raised.value)
    assert "head.kind: received 'cubic'" in str(raised.value)


@pytest.mark.parametrize(
    "text", ["a: [1, 2", "- 1\n- 2\n", "just text", "", "a: ${b}", "a: !!python/object:os.system {}"]
)
def test_a_file_that_is_no_config(path, text):
    pathlib.Path(path).write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"'configs/nope\.yaml', which is no file"):
        load_config("configs/nope.yaml")


@pytest.mark.parametrize(
    "path", sorted(pathlib.Path(__file__).parent.parent.glob("configs/*.yaml")), ids=lambda p: p.stem
)
def test_shipped_configs_are_valid_and_say_their_command(path):
    load_config(str(path))
    assert f"python train.py --config configs/{path.name}" in path.read_text()
