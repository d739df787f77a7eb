"""docs/config.md says what the schema says, and each key is shown in another page."""

import inspect

from tests.conftest import ROOT
from xbm_keras.cli.__main__ import main
from xbm_keras.config import reference

DOCS = ROOT / "docs"


def test_the_page_is_that_of_the_schema():
    """Else: python -m xbm_keras.config.reference"""
    assert (DOCS / "config.md").read_text("utf-8") == reference.page(DOCS)


def test_each_key_is_described_and_shown_in_a_page():
    keys = list(reference.keys_of())
    assert len(keys) > 80
    assert not {key.name for key in keys if not reference.pages_of(key.name, DOCS)}
    assert not {key.name for key in keys if not key.description and not reference.is_tag(key)}


def test_a_row_says_what_a_key_takes():
    page = reference.page(DOCS)
    assert "| `data.name` | a text |  | Such as cars196, or my_dataset/config:1.0.0. | [data](data.md) |" in page
    assert "| `head.shrinkage` | a number in 0..1, or `auto` | `auto` | Of the within-class covariance," in page
    assert "| `export.codes` | a list, each one of `float16`, `int8`, `int4`, `trellis`, `layers`, `binary` |" in page
    assert "| `training.refit` | true or false | `true` |" in page
    assert page.count("`data.split.by`") == 1
    assert "## `loss`, `name: triplet`" in page


def test_a_page_names_a_key_as_a_whole(tmp_path):
    (tmp_path / "a.md").write_text("`memory.memory_size=0` and data.path_column")
    (tmp_path / "config.md").write_text("`data.path`")
    assert reference.pages_of("memory.memory_size", tmp_path) == ["a.md"]
    assert not reference.pages_of("data.path", tmp_path)
    assert not reference.pages_of("memory.memory", tmp_path)


def test_the_help_lists_each_key_with_what_it_takes_and_what_for(capsys):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert "  --workdir: " in said
    assert "  training.refit: true or false [true]\n      After the number of epochs was chosen, train again" in said
    assert "  loss.temperature: a number above 0 [0.1]\n      (info_nce, nt_xent) T, of similarities" in said
    assert not [key.name for key in reference.keys_of() if not reference.is_tag(key) and f"  {key.name}: " not in said]


def test_the_help_does_without_source(monkeypatch):
    def no_source(each):
        raise OSError("could not get source code")

    monkeypatch.setattr(reference, "_docstrings", reference._docstrings.__wrapped__)  # keeps nothing for other tests
    monkeypatch.setattr(inspect, "getsource", no_source)
    assert "  training.refit: true or false [true]\n" in reference.summary()
