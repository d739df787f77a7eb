"""What a user can get wrong in a config, and what they are told."""

import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml

from tests.conftest import ROOT
from xbm_keras.config import yaml_files
from xbm_keras.config.yaml_files import ConfigError, check_config, load_config, save_config
from xbm_keras.stages.pair_losses import LOSSES

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
    assert config.head.embedding_dim == "auto"


def test_blanks_around_a_key_say_nothing(path):
    assert load_config(path, ["training.epochs = 9"]).training.epochs == 9
    assert load_config(path, ["data.path = x y.npz "]).data.path == "x y.npz"
    assert load_config(path, ["data.path= x.npz"]).data.path == " x.npz"  # to the letter


def test_parameters_without_a_name_are_those_of_the_default_loss(path):
    assert load_config(path, ["loss.temperature=0.5"]).loss.model_dump() == {"name": "supcon", "temperature": 0.5}


def test_every_loss_runs_again_as_it_is(path, tmp_path):
    for name in LOSSES:
        config = load_config(path, [f"loss.name={name}"])
        save_config(config, tmp_path / "again.yaml")
        assert load_config(str(tmp_path / "again.yaml")) == config
        loss = config.loss.make()
        assert (type(loss), loss.get_config()) == (LOSSES[name], LOSSES[name]().get_config())
        assert config.is_without_labels == (name == "similarity_alignment")


def test_environment_variables_have_defaults(path, monkeypatch):
    pathlib.Path(path).write_text(MINIMAL.replace("x.npz", "'${oc.env:SOME_FOLDER,here}/x.npz'"))
    assert load_config(path).data.path == "here/x.npz"
    monkeypatch.setenv("SOME_FOLDER", "/there")
    assert load_config(path).data.path == "/there/x.npz"


def test_the_resolved_config_runs_again_as_it_is(path, tmp_path):
    config = load_config(path, ["loss.name=triplet", "loss.margin=null", "training.learning_rate=1e-5"])
    save_config(config, tmp_path / "again.yaml")
    assert load_config(str(tmp_path / "again.yaml")) == config


TABLE = {"data": {"source": "image_table", "root": "x", "table": "y"}, "backbone": {"kind": "file", "path": "x"}}
TEXTS = [
    "shoot #1", "2024", "007", "no", "1e3", "null", "[no]", "~", "a: b", "{x}", " with spaces ", "${HOME}", "Grüße, 数",
    "'quoted'", '"', "", "a=b", "1.10", "true", ".inf", "???", "${oc.env:HOME,x}", "\\\\${x}", "C:\\new",
    "2024-01-01", "1:30", "two\nlines\x85", "- a", "&a", "*a", "!!python/name:os.system", "0x1f", "1_000",
]  # fmt: skip


@pytest.fixture
def table(tmp_path):
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(TABLE))
    return str(tmp_path / "table.yaml")


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_to_the_letter_and_comes_back(table, tmp_path, text):
    config = load_config(table, [f"data.root={text}", f"backbone.path={text}", f"data.split.column={text}"])
    assert config.data.root == config.backbone.path == text
    assert config.data.split.column == (None if text == "null" else text)
    save_config(config, tmp_path / "again.yaml")
    assert load_config(str(tmp_path / "again.yaml")) == config


ANY_TEXT = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.text("\\${}:,'\"# ab[]0e1~-\n\x85", max_size=10)
    | st.sampled_from(TEXTS)
)


@hypothesis.given(ANY_TEXT, ANY_TEXT, st.none() | st.lists(ANY_TEXT | st.integers(), max_size=3))
@hypothesis.settings(max_examples=60)
def test_any_config_comes_back_from_its_file(tmp_path_factory, text, other, texts):
    folder = tmp_path_factory.mktemp("any")
    split = {"column": other} if texts is None else {"test": texts}
    data = {**TABLE["data"], "root": text, "labels": other, "split": split}
    config = check_config({"data": data, "backbone": {"kind": "file", "path": other}}, "x")
    save_config(config, folder / "x.yaml")
    assert load_config(str(folder / "x.yaml")) == config
    overridden = load_config(str(folder / "x.yaml"), [f"data.root={other}", f"data.images={text}"])
    assert (overridden.data.root, overridden.data.images) == (other, text)
    save_config(overridden, folder / "x.yaml")
    assert load_config(str(folder / "x.yaml")) == overridden


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.split.test=[no, 007, 7, 'a, b', shoot #1, ${x}]", ["no", "007", 7, "a, b", "shoot #1", "${x}"]),
        ("data.split.test=0.3", 0.3),
        ("data.split.test=[]", []),
        ("data.split.num_train_classes=12", 12),
        ("training.folds=auto", "auto"),
        ("training.folds=2", 2),
        ("training.learning_rate=1e-3", 0.001),
        ("training.learning_rate=1", 1.0),
        ("top_k.num_negatives=all", "all"),
        ("top_k.num_negatives=12", 12),
        ("top_k.mine_in=sketch", "sketch"),
        ("top_k.mine_in=64", 64),
        ("loss.temperature=0.5", 0.5),
        ("data.split.test=[no, '1']", ["no", "1"]),
        ("backbone.pooling=first", "first"),
        ("backbone.image_size=[32, 48]", [32, 48]),
        ("head.widths=[16,128]", [16, 128]),
        ("head.start=local", "local"),
        ("export.codes=[int8]", ["int8"]),
        ("views.number=1", 1),
        ("views.flip=no", False),
        ("views.turned_classes=auto", "auto"),
    ],
)
def test_values_are_read_by_the_type_of_their_key(table, override, expected):
    keys = override.split("=")[0].split(".")
    value = load_config(table, [override])
    for key in keys:
        value = getattr(value, key)
    assert (value, type(value)) == (expected, type(expected))


def test_a_key_is_of_the_section_that_is_named_last(path):
    pathlib.Path(path).write_text("data: {source: features, path: x}\nbackbone: {kind: none}\n")
    overrides = ["data={source: image_folder, root: b}", "data.source=text", "data.path=007", "data.root=null"]
    with pytest.raises(ConfigError, match=r"data\.root: unknown key"):
        load_config(path, [*overrides, "backbone.kind=keras_hub", "backbone.preset=1e3"])
    config = load_config(path, ["data.source=text", "data.path=007", "backbone.kind=keras_hub", "backbone.preset=1e3"])
    assert (config.data.path, config.backbone.preset) == ("007", "1e3")


def test_text_that_no_file_could_hold_is_told(path):
    with pytest.raises(ConfigError, match=r"received 'a\\udcff'; expected text that is valid Unicode"):
        load_config(path, ["data.path=a\udcff"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.epoch=3"], "training.epoch: unknown key; did you mean 'epochs'?"),
        (["memori.memory_size=3"], "memori: unknown key; did you mean 'memory'?"),
        (["epochs=3"], "epochs: unknown section; did you mean the key training.epochs?"),
        (["margin=0.3"], "margin: unknown section; did you mean the key loss.margin?"),
        (["training.qqqq=1"], "training.qqqq: unknown key; known here: batch_size, checkpoint_every"),
        (["training.epochs=many"], "training.epochs: received 'many'; input should be a valid integer"),
        (["training.epochs=1.5"], "training.epochs: received 1.5"),
        (["training.learning_rate=.inf"], "training.learning_rate: received inf"),
        (["training.learning_rate=-1"], "training.learning_rate: received -1"),
        (
            ["top_k.num_negatives=0", "top_k.num_positives=0", "top_k.num_random=0"],
            "top_k: received num_negatives=0 and num_positives=0, which leaves",
        ),
        (["top_k.num_negatives=some"], "top_k.num_negatives: received 'some'"),
        (["loss.name=contrastive", "loss.negative_margin=1.5"], "loss.negative_margin: received 1.5"),
        (
            ["loss.name=contrastve"],
            "loss.name: received 'contrastve'; expected one of contrastive, margin, multi_similarity",
        ),
        (["loss.margin=0.2"], "loss.margin: unknown key; known here: name, temperature"),
        (["data.split.test=1.2"], "data.split.test: received 1.2"),
        (["data.split.test=0"], "data.split.test: received 0"),
        (["data.source=image_foldr"], "did you mean 'image_folder'?"),
        (["data.source=image_folder", "data.path=null"], "data.root: missing; it has no default"),
        (["memory.memory_size=64"], "memory.memory_size 64 is smaller than the batch of 128"),
        (["memory.memory_size=-1"], "memory.memory_size: received -1"),
        (["backbone.kind=file", "backbone.path=x"], "'features' does not go with backbone.kind 'file'"),
        (["views.number=2"], "views.number 2 does not go with data.source 'features'"),
        (["views.turned_classes=true"], "views.turned_classes does not go with data.source 'features'"),
        (["training=5"], "training: received 5"),
        (["head.widths=64"], "head.widths: received 64; input should be a valid list, such as [a, b]"),
        (["training.epochs"], "--set 'training.epochs'; expected section.key=value"),
        (["training.seed=-1"], "training.seed: received -1; input should be greater than or equal to 0"),
        (["training.seed=4294967296"], "training.seed: received 4294967296; input should be less than 4294967296"),
        (["data.split.seed=-1"], "data.split.seed: received -1"),
        (["data.split.by=item", "data.split.test=[a]"], "data.split: test ['a'] does not go with by"),
        (["head.widths=[16,8]"], "head: received widths=[16, 8] with embedding_dim=8; expected ascending"),
        (["head.embedding_dim=2147483648"], "head.embedding_dim: received 2147483648"),
        (["top_k.num_negatives=2147483647"], "top_k.num_negatives: received 2147483647"),
        (["memory.memory_size=1" + 30 * "0"], "memory.memory_size: received 1000"),
        (["training.samples_per_class=200"], "samples_per_class 200 is more than the batch of 128"),
        (["memory.memory_size=0", "training.batch_size=2000000"], "training.batch_size: received 2000000"),
        (["search.space={loss.temperature: {min: 2, max: 1}}"], "expected min below max"),
        (["search.space={loss.temperature: {min: 0, max: 1, log: true}}"], "expected min above 0"),
        (["search.space={loss.temperature: {min: .nan, max: 1}}"], "search.space"),
        (["search.space={loss.temperature: []}"], "received no values"),
        (["=3"], "--set '=3'; expected section.key=value"),
        (["training..epochs=3"], "--set 'training..epochs=3'; expected section.key=value"),
        (["training.epochs.x=3"], "training.epochs"),
        (["training.epochs=1e3"], "training.epochs: received 1000.0"),
        (["views.flip=maybe"], "views.flip: received 'maybe'"),
    ],
)
def test_what_is_wrong_is_named(path, overrides, expected):
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    assert expected in str(raised.value)


def test_the_folder_of_a_run_is_no_config_but_holds_one(tmp_path):
    (tmp_path / "config.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match=f"a folder; expected a file. Say --config {tmp_path}/config.yaml"):
        load_config(str(tmp_path))


def test_turned_classes_need_classes():
    settings = ["loss.name=similarity_alignment", "views.turned_classes=true"]
    with pytest.raises(ConfigError, match=r"and loss\.name 'similarity_alignment'; it takes pictures and labels"):
        load_config("configs/image_folder.yaml", ["data.root=x", *settings])


def test_all_problems_are_told_at_once(path):
    with pytest.raises(ConfigError) as raised:
        load_config(path, ["training.epoch=3", "head.kind=cubic"])
    assert "training.epoch" in str(raised.value)
    assert "head.kind: received 'cubic'" in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "- 1\n- 2\n",
        "just text",
        "",
        "a: ${b}",
        "a: !!python/object:os.system {}",
        "a: !!bool x",  # of YAML's own constructors a KeyError, an AttributeError and an IndexError
        "a: !!timestamp x",
        "a: !!int ''",
        "a: " + "9" * 5000,
        "a: " + "[" * 3000,
    ],
)
def test_a_file_that_is_no_config(path, text):
    pathlib.Path(path).write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.parametrize("text", ["!!bool x", "!!timestamp x", "!!int ''", "[" * 3000])
def test_an_override_that_is_no_yaml_is_told(path, text):
    with pytest.raises(ConfigError, match=r"training\.epochs: received"):
        load_config(path, [f"training.epochs={text}"])


def test_a_text_like_a_day_that_there_is_not(path):
    text = pathlib.Path(path).read_text()
    pathlib.Path(path).write_text(text + "cache: {dir: 2024-02-30}\n")
    assert load_config(path).cache.dir == "2024-02-30"


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"'configs/groceries\.yaml', which is no file.*, grocery, .* mean grocery\?"):
        load_config("configs/groceries.yaml")


@pytest.mark.parametrize("name", ["grocery", "grocery.yaml", "configs/grocery.yaml"])
def test_a_config_of_the_package_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert yaml_files.find_config(name).read_text() == (ROOT / "configs/grocery.yaml").read_text()
    pathlib.Path("grocery").write_text("one's own comes first")
    assert yaml_files.find_config("grocery") == pathlib.Path("grocery")


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_are_valid_and_say_their_command(path):
    load_config(str(path))
    assert f"python train.py --config configs/{path.name}" in path.read_text()
