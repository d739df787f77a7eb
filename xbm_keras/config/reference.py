"""docs/config.md, made of the schema: `python -m xbm_keras.config.reference`, in a checkout."""

import ast
import functools
import inspect
import itertools
import json
import pathlib
import re
import textwrap
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import fields
from pydantic_core import PydanticUndefined

from xbm_keras.arguments import expected
from xbm_keras.atomic_files import write_whole
from xbm_keras.config.schema import Config
from xbm_keras.config.sections import Section, is_section, members_of

TOP = """# Keys of a config

What a YAML file may say, or `--set section.key=value`; made of the schema by `python -m xbm_keras.config.reference`. A
key is there because a user could not say his data or machine without it, or because a page shows what it does. Where a
loss needs no labels some defaults are others: [compress.md](compress.md).
"""
HEAD = ("\n| key | value | default | what | shown in |", "|---|---|---|---|---|")
HUGE = f", below {2**31}"  # says no more than that a number is one


class Key(NamedTuple):
    """A key of a section."""

    name: str
    """Dotted."""
    section: type[Section]
    tag: str | None
    """`key: value`, where the section is one of several."""
    field: fields.FieldInfo

    @property
    def description(self) -> str:
        """What it means: of the field, as sections of a constructor have it, or the docstring below it."""
        return self.field.description or _docstrings(self.section).get(self.name.rpartition(".")[2], "")


@functools.cache
def _docstrings(section: type[Section]) -> dict[str, str]:
    """What stands below the keys of a section in its source.

    Pydantic reads it while a class is made, where asked to, and goes through all modules of TensorFlow for each of its
    frames: a fifth of a second of each command.
    """
    found = {}
    for each in reversed(section.__mro__):
        if issubclass(each, Section) and each.__module__ != Section.__module__:  # where those are made without source
            try:
                source = inspect.getsource(each)
            except OSError:  # an installation without it; pydantic leaves them out, too
                continue
            (made,) = ast.parse(textwrap.dedent(source)).body
            for key, below in itertools.pairwise(made.body if isinstance(made, ast.ClassDef) else ()):
                if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name):
                    match below:
                        case ast.Expr(ast.Constant(str(told))):
                            found[key.target.id] = inspect.cleandoc(told)
    return found


def keys_of(section: type[Section] = Config, prefix: str = "", tag: str | None = None) -> Iterator[Key]:
    """All keys, a key of several sections once for each."""
    for name, field in section.model_fields.items():
        inside = [each for each in members_of(field.annotation) if is_section(each)]
        for each in inside:
            yield from keys_of(each, f"{prefix}{name}.", ": ".join(each.tag) if each.tag else tag)
        if not inside:
            yield Key(prefix + name, section, tag, field)


def is_tag(key: Key) -> bool:
    """Whether it does no more than to tell its section from others."""
    return key.section.tag is not None and key.section.tag[0] == key.name.rpartition(".")[2]


def pages_of(key: str, folder: pathlib.Path) -> list[str]:
    """Names of the pages in a folder that name a dotted key."""
    named = re.compile(rf"(?<![\w.]){re.escape(key)}(?!\w)")
    pages = sorted(path for path in folder.rglob("*.md") if path.name != "config.md")
    return [page.relative_to(folder).as_posix() for page in pages if named.search(page.read_text("utf-8"))]


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
        what = " ".join(key.description.split()).replace("|", "\\|")
        pages = ", ".join(f"[{pathlib.PurePosixPath(name).stem}]({name})" for name in pages_of(key.name, folder))
        cells = (f"`{key.name}`", _said(key.field), _default(key.field))
        lines.append(f"| {' | '.join(cells)} | {what[:1].upper()}{what[1:]} | {pages} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """All keys, a line each with type and default and a line with what it means, for a terminal."""
    tags: dict[tuple[str, str], list[str]] = {}
    for key in keys_of():
        if not is_tag(key):
            said, default = _said(key.field).replace("`", ""), _default(key.field).strip("`")
            what = re.split(r"(?<=\.)\s", " ".join(key.description.split()))[0]
            about = f"  {key.name}: {said}{default and f' [{default}]'}", f"{what[:1].upper()}{what[1:]}"
            tags.setdefault(about, []).append(key.tag.partition(": ")[2] if key.tag else "")
    lines = []
    for (first, what), of in tags.items():
        lines += [first, f"      ({', '.join(of)}) {what}" if all(of) else f"      {what}"]
    return "\n".join(lines)


def _said(field: fields.FieldInfo) -> str:
    """A type in words, as YAML writes values."""
    said = expected(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)
    said = said.replace(HUGE, "").replace("True or False", "true or false").replace("None", "null")
    return re.sub(r"'([^']*)'", r"`\1`", said)


def _default(field: fields.FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return ""
    return f"`{'null' if value is None else json.dumps(value) if isinstance(value, bool | list) else value}`"


if __name__ == "__main__":
    docs = pathlib.Path("docs")
    write_whole(docs / "config.md", page(docs))
