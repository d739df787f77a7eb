"""What every section of a config is, and how one is made of the constructor that it feeds.

So a default, a bound and the sentence that describes a key stand in one place, the constructor.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Union

import pydantic
from annotated_types import MaxLen, MinLen
from pydantic import Field

from xbm_keras.arguments import arguments_of, union_of


class Section(pydantic.BaseModel):
    """Strict: no unknown keys, no silent conversions, no changes after loading."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
    tag: ClassVar[tuple[str, str] | None] = None
    """A key and its only value, by which `one_of` tells sections apart."""


def is_section(annotation: Any) -> bool:
    """Whether a key of this type is a section."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def members_of(annotation: Any) -> list[Any]:
    """The plain types of a union; what bounds one is left out."""
    if typing.get_origin(annotation) is Annotated:
        return members_of(typing.get_args(annotation)[0])
    members = union_of(annotation)
    return members if members == [annotation] else [member for each in members for member in members_of(each)]


class ArgumentsSection(Section):
    """A section whose keys are arguments of a constructor."""

    constructor: ClassVar[Any]

    def arguments(self) -> dict[str, Any]:
        """Those of the constructor that are keys of the section."""
        names = arguments_of(type(self).constructor)
        return {name: getattr(self, name) for name in names if name in type(self).model_fields}

    def make(self, **others: Any) -> Any:
        """What the constructor makes of them, and of arguments that are no keys, or that others come before."""
        return type(self).constructor(**{**self.arguments(), **others})


def section_of(
    constructor: Callable,
    base: type[ArgumentsSection] = ArgumentsSection,
    without: Sequence[str] = (),
    recipe: dict[str, Any] | None = None,
    **tag: str,
) -> Any:
    """A section with a key for each argument of a constructor.

    Args:
        constructor: a class or function whose arguments are annotated; its docstring describes them.
        base: of the section, with the keys that go beside the arguments, or take more than these do.
        without: arguments that are no keys.
        recipe: defaults where they are others than the constructor's.
        **tag: a key of one value, by which `one_of` tells sections apart, such as `name="triplet"`.
    """
    keys: dict[str, Any] = {key: (Literal[value], value) for key, value in tag.items()}
    for name, argument in arguments_of(constructor).items():
        if name not in without and name not in base.model_fields:
            default = (recipe or {}).get(name, argument.default)
            default = ... if default is inspect.Parameter.empty else default
            default = list(default) if isinstance(default, tuple | list) else default
            described = re.sub(r"\bNone\b", "null", argument.description)
            keys[name] = (_of_yaml(argument.annotation), Field(default, description=described or None))
    section = pydantic.create_model(
        constructor.__name__,
        __base__=base,
        __doc__=inspect.getdoc(constructor),
        __module__=__name__,
        **keys,
    )
    section.constructor = constructor
    section.tag = next(iter(tag.items()), None)
    return section


def one_of(sections: Iterable[type[Section]], key: str) -> Any:
    """The type of a section that is one of several, by the value of a key."""
    return Annotated[Union[tuple(sections)], Field(discriminator=key)]  # noqa: UP007


def _of_yaml(annotation: Any) -> Any:
    """The type with lists in place of sequences, which YAML does not tell apart."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return Annotated[(_of_yaml(inside[0]), *inside[1:])]
    if origin is tuple:
        return Annotated[list.__class_getitem__(inside[0]), MinLen(len(inside)), MaxLen(len(inside))]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_of_yaml, inside))]  # noqa: UP007
    if origin is Sequence:
        return list.__class_getitem__(_of_yaml(inside[0]))
    return annotation
