"""docs/config.md, made of the schema: `python -m xbm_keras.config.reference`, in a checkout."""

import inspect
import json
import pathlib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import fields
from pydantic_core import PydanticUndefined

from xbm_keras.atomic_files import write_whole
from xbm_keras.config.schema import Config
from xbm_keras.config.search_schema import Dimension
from xbm_keras.config.sections import Section

TOP = """# Keys of a config

What a YAML file may say, or `--set section.key=value`; made of the schema by `python -m xbm_keras.config.reference`. A
key is there because a user could not say his data or machine without it, or because a page shows what it does. Where a
loss needs no labels some defaults are others: [compress.md](compress.md).
"""
WORDS = {int: "whole number", float: "number", bool: "true, false", str: "text", type(None): "null", Any: "anything"}
BOUNDS = {"gt": "above {}", "ge": "{} or more", "lt": "below {}", "le": "at most {}"}
TAGS = ("source", "kind", "name")  # by which sections are told apart
HEAD = ("\n| key | value | default | what | shown in |", "|---|---|---|---|---|")
HUGE = 2**31  # bounds that say no more than that a number is one


class Key(NamedTuple):
    """A key of a section."""

    name: str
    """Dotted."""
    section: type[Section]
    tag: str | None
    """`key: value`, where the section is one of several."""
    field: fields.FieldInfo


def keys_of(section: type[Section] = Config, prefix: str = "", tag: str | None = None) -> Iterator[Key]:
    """All keys, a key of several sections once for each."""
    for name, field in section.model_fields.items():
        inside = [each for each in _members(field.annotation) if _is_section(each) and each is not Dimension]
        for each in inside:
            own = next((f"{key}: {value}" for key in TAGS if (value := _only_value(each, key))), tag)
            yield from keys_of(each, f"{prefix}{name}.", own if len(inside) > 1 else tag)
        if not inside:
            yield Key(prefix + name, section, tag, field)


def is_tag(key: Key) -> bool:
    """Whether it does no more than to tell its section from others."""
    return _only_value(key.section, key.name.rpartition(".")[2]) is not None


def pages_of(key: str, folder: pathlib.Path) -> list[str]:
    """Names of the pages in a folder that name a dotted key."""
    named = re.compile(rf"(?<![\w.]){re.escape(key)}(?!\w)")
    pages = sorted(path for path in folder.glob("*.md") if path.name != "config.md")
    return [page.name for page in pages if named.search(page.read_text("utf-8"))]


def page(folder: pathlib.Path) -> str:
    """The whole page.

    Args:
        folder: of the pages that it refers to.
    """
    lines, above, told = [TOP.strip()], None, set()
    for key in keys_of():
        of_split = key.name.startswith("data.split.")
        if is_tag(key) or (of_split and key.name in told):
            continue  # the heading says it; the split is that of every source
        told.add(key.name)
        if above != (above := key.section):
            tag = "" if of_split or not key.tag else f", `{key.tag}`"
            about = inspect.cleandoc(key.section.__doc__ or "").split("\n\n")[0]
            lines += [f"\n## `{key.name.rpartition('.')[0]}`{tag}\n", " ".join(about.split()), *HEAD]
        what = " ".join((key.field.description or "").split()).replace("|", "\\|")
        pages = ", ".join(f"[{name.removesuffix('.md')}]({name})" for name in pages_of(key.name, folder))
        cells = (f"`{key.name}`", _said(key.field.annotation, key.field.metadata), _default(key.field))
        lines.append(f"| {' | '.join(cells)} | {what[:1].upper()}{what[1:]} | {pages} |")
    return "\n".join(lines) + "\n"


def _members(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, list, Sequence):
        return [member for each in typing.get_args(annotation) for member in _members(each)]
    return [annotation]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _only_value(section: type[Section], key: str) -> str | None:
    annotation = section.model_fields[key].annotation if key in section.model_fields else None
    values = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    return values[0] if len(values) == 1 else None


def _said(annotation: Any, bounds: list[Any]) -> str:
    """A type in words."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        extra = [each for one in inside[1:] for each in (one.metadata if isinstance(one, fields.FieldInfo) else [one])]
        return _said(inside[0], [*extra, *bounds])
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(dict.fromkeys(_said(each, bounds) for each in inside))
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in inside)
    if origin in (list, Sequence):
        return f"list of {_said(inside[0], []) if not _is_section(inside[0]) else 'ranges'}"
    if origin is dict:
        return "keys to values"
    told = [
        words.format(value)
        for each in bounds
        for name, words in BOUNDS.items()
        if (value := getattr(each, name, None)) is not None and abs(value) < HUGE
    ]
    return ", ".join([WORDS[annotation], *(told if annotation in (int, float) else [])])


def _default(field: fields.FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return ""
    return f"`{'null' if value is None else json.dumps(value) if isinstance(value, bool | list) else value}`"


if __name__ == "__main__":
    docs = pathlib.Path("docs")
    write_whole(docs / "config.md", page(docs))
