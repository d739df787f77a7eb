"""How the text of `--set section.key=value` becomes a value: by the type that the schema gives the key, not its look.

So `007`, `no`, `1e3` and `shoot #1` are what they say where the key takes text, and numbers are numbers where it takes
those. A text is taken to the letter: it holds no comments, no interpolation, and quotes only in lists.
"""

import contextlib
import functools
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from xbm_keras.config.schema import Config
from xbm_keras.config.sections import Section, is_section, members_of

OPENING, CLOSING = "[{(", "]})"
NULLS = ("null", "Null", "NULL", "~", "")
BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse(overrides: Sequence[str], values: Mapping[str, Any]) -> list[tuple[list[str], Any]]:
    """The keys of each `section.key=value`, and its value.

    Args:
        overrides: of which the later ones come over the earlier ones.
        values: nested ones that they come over; names in them, such as `loss.name`, decide which keys there are.
    """
    pairs = (override.split("=", 1) for override in overrides)
    texts = {key.strip(): text.strip() if key[-1:].isspace() else text for key, text in pairs}
    return [(key.split("."), _parsed(text, _types_of(key.split("."), texts, values))) for key, text in texts.items()]


def _types_of(keys: list[str], texts: Mapping[str, str], values: Any) -> list[Any]:
    """The plain types of a key, sections and lists among them; of several sections' where their name is not known."""
    kinds: list[Any] = [Config]
    for depth, key in enumerate(keys):
        sections = [kind for kind in kinds if is_section(kind)]
        named = [each for each in sections if _is_named(each, keys[:depth], texts, values)]
        fields = [each.model_fields[key] for each in named or sections if key in each.model_fields]
        kinds = list(dict.fromkeys(kind for field in fields for kind in members_of(field.annotation)))
    return kinds


def _is_named(section: type[Section], keys: list[str], texts: Mapping[str, str], values: Any) -> bool:
    """Whether the section is the one that is named, of several."""
    if section.tag is None:
        return False
    name, value = section.tag
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    given = values.get(name) if isinstance(values, Mapping) else None
    return texts.get(".".join([*keys, name]), given) == value


def _parsed(text: str, kinds: Sequence[Any]) -> Any:
    """The value of a text; where it is of none of the types, what it looks like, for the message that refuses it."""
    choices = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
    literals = {str(value): value for kind in choices for value in typing.get_args(kind)}
    if text in literals:
        return literals[text]
    takes_text = str in kinds
    if type(None) in kinds and text in (("null",) if takes_text else NULLS):
        return None
    lists: list[Callable[[str], Any]] = [
        functools.partial(_list, kind=kind) for kind in kinds if typing.get_origin(kind) in (list, Sequence)
    ]
    for read in (*lists, *(READERS[kind] for kind in READERS if kind in kinds)):
        with contextlib.suppress(ValueError):
            value = read(text)
            # A number that would not give the text back is a text, where both are taken: 007 is no 7.
            if not takes_text or isinstance(value, list) or str(value) == text:
                return value
    return text if takes_text else _as_it_looks(text)


def _bool(text: str) -> bool:
    if text.lower() not in BOOLS:
        raise ValueError(text)
    return BOOLS[text.lower()]


def _int(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9][0-9_]*\s*", text):
        raise ValueError(text)
    return int(text)


READERS: dict[type, Callable[[str], Any]] = {bool: _bool, int: _int, float: float}


def _list(text: str, kind: Any) -> list:
    """`[a, b]`. Raises ValueError for a text of another form."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    members = members_of(typing.get_args(kind)[0])
    return [_element(each, members) for each in _split(text[1:-1])]


def _element(text: str, kinds: Sequence[Any]) -> Any:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if is_quoted and str in kinds:
        with contextlib.suppress(yaml.YAMLError):
            return yaml.safe_load(text)
    return _parsed(text, kinds)


def _split(text: str) -> list[str]:
    """At its commas, but for those inside brackets or an element in quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not parts[-1].strip():
            quote = character
        elif character in OPENING or character in CLOSING:
            depth += 1 if character in OPENING else -1
        elif character == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += character
    parts = [part.strip() for part in parts]
    return parts if parts[-1] else parts[:-1]


def _as_it_looks(text: str) -> Any:
    """A number, a mapping and so on, as YAML has it; else the text."""
    readers: tuple[Callable[[str], Any], ...] = (_int, float, yaml.safe_load)
    for read in readers:
        with contextlib.suppress(
            Exception
        ):  # YAML's constructors raise what they like, such as KeyError for `!!bool x`
            return read(text)
    return text
