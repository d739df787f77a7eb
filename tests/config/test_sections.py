"""A section is its constructor: the same keys, defaults, bounds and sentences."""

import inspect
import typing
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
import pytest

from tests.fresh_processes import run_python
from xbm_keras.arguments import AboveZero, Positive, UpTo2, arguments_of, checked
from xbm_keras.config import reference
from xbm_keras.config.schema import RECIPE, Cache, Config, Export, HeadConfig, Memory, Neighbors, TopK
from xbm_keras.config.sections import ArgumentsSection, Section, one_of, section_of
from xbm_keras.stages.pair_losses import LOSSES


class Stage:
    """A stage.

    Args:
        width: of the rows.
        margin: a difference of cosines.
    """

    @checked
    def __init__(
        self, width: Positive, margin: UpTo2 | None = 0.5, ks: typing.Sequence[Positive] = (1, 2), seed: int = 0
    ):
        self.given = (width, margin, ks, seed)


def test_keys_defaults_and_sentences_are_those_of_the_constructor():
    section = section_of(Stage, without=["seed"], recipe={"margin": 0.25})
    assert list(section.model_fields) == ["width", "margin", "ks"]
    assert section.model_fields["width"].is_required()
    assert section.model_fields["margin"].description == "a difference of cosines."
    assert section(width=3).model_dump() == {"width": 3, "margin": 0.25, "ks": [1, 2]}
    assert section.__doc__.startswith("A stage.")
    made = section(width=3, margin=None, ks=[4]).make(seed=7)
    assert made.given == (3, None, [4], 7)


@pytest.mark.parametrize(
    "given", [{"width": 0}, {"width": True}, {"width": "3"}, {"width": 1, "margin": 2.5}, {"width": 1, "ks": [0]},
              {"width": 1, "seed": 2}, {}]
)  # fmt: skip
def test_bounds_are_those_of_the_constructor(given):
    with pytest.raises(pydantic.ValidationError):
        section_of(Stage, without=["seed"])(**given)


def test_pairs_and_lists_are_lists_in_a_file():
    def resize(size: tuple[Positive, Positive] | None = (2, 3), names: Literal["all"] | Sequence[str] = "all"):
        return size, names

    section = section_of(resize)
    assert section().model_dump() == {"size": [2, 3], "names": "all"}
    assert section(size=[4, 5], names=["a"]).make() == ([4, 5], ["a"])
    assert section(size=None).size is None
    for wrong in ({"size": [1]}, {"size": [0, 1]}, {"names": "some"}):
        with pytest.raises(pydantic.ValidationError):
            section(**wrong)


def test_what_stands_beside_the_arguments():
    class Base(ArgumentsSection):
        start: str = "random"
        seed: int | Literal["auto"] = "auto"

    section = section_of(Stage, base=Base)
    assert section(width=2, start="pca", seed=3).make().given == (2, 0.5, [1, 2], 3)
    assert section(width=2).seed == "auto"


def test_sections_are_told_apart_by_a_key():
    def other(width: AboveZero = 1.5): ...

    kinds = one_of([section_of(Stage, kind="stage"), section_of(other, kind="other")], "kind")
    adapter = pydantic.TypeAdapter(Annotated[kinds, "x"])
    assert adapter.validate_python({"kind": "other"}).width == 1.5
    with pytest.raises(pydantic.ValidationError, match="kind"):
        adapter.validate_python({"kind": "third"})


def test_every_loss_has_a_section_of_its_arguments():
    union = typing.get_args(Config.model_fields["loss"].annotation)
    assert {section.model_fields["name"].default: section.constructor for section in union} == LOSSES
    for name, loss in LOSSES.items():
        assert loss.name == name
        for argument in arguments_of(loss).values():
            assert argument.description, name
            assert argument.default is not inspect.Parameter.empty


def sections_in(annotation):
    """A section and all within, also where a union or a tag holds them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        inside = [field.annotation for field in annotation.model_fields.values()]
    else:
        inside = typing.get_args(annotation)
    for each in inside:
        yield from sections_in(each)


OF_ARGUMENTS = [section for section in sections_in(Config) if issubclass(section, ArgumentsSection)]


def test_every_key_of_a_section_of_arguments_is_described():
    assert {HeadConfig, Memory, TopK, Neighbors, Export, Cache} < set(OF_ARGUMENTS)
    for section in OF_ARGUMENTS:
        for name in arguments_of(section.constructor).keys() & section.model_fields:
            assert reference.Key(name, section, None, section.model_fields[name]).description, (section, name)


@pytest.mark.parametrize("section", [HeadConfig, Memory, TopK, Neighbors, Export])
def test_the_recipe_says_where_it_departs_from_a_constructor(section):
    key = next(name for name, field in Config.model_fields.items() if section in sections_in(field.annotation))
    known = arguments_of(section.constructor)
    of_constructor = {name: known[name].default for name in section.model_fields if name in known}
    of_recipe = {name: value for name, value in RECIPE.get(key, {}).items() if name in known}
    of_recipe = {} if section is Neighbors else of_recipe  # the recipe is of labels
    assert all(of_constructor[name] != value for name, value in of_recipe.items())
    expected = {name: list(value) if value == () else value for name, value in {**of_constructor, **of_recipe}.items()}
    expected.pop("embedding_dim", None)  # whose default is of the features
    assert {name: getattr(section(), name) for name in expected} == expected


def test_a_section_is_checked_without_a_device():
    """Else a process that only reads configs would take the memory of every GPU."""
    code = (
        "from xbm_keras.config.yaml_files import check_config; from tensorflow.python.eager import context; "
        "check_config({'data': {'source': 'features', 'path': 'x'}, 'backbone': {'kind': 'none'}}, 'x'); "
        "raise SystemExit(context.context()._initialized)"
    )
    assert run_python(["-c", code], timeout=100).returncode == 0
