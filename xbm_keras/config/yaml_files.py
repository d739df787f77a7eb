"""How a YAML file, overrides and environment become one checked `Config`, and what is said where they cannot."""

import contextlib
import difflib
import json
import math
import pathlib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import omegaconf
import pydantic
import yaml

from xbm_keras.atomic_files import write_whole
from xbm_keras.config import override_text, retired
from xbm_keras.config.schema import Config
from xbm_keras.config.sections import Section, is_section, members_of

SHOWN = ("data", "backbone", "cache", "views", "head", "memory", "top_k", "loss", "training", "export")  # sections
# Texts that name what is known to all, and cannot be anything else: a network or data set that exists, its layers.
NAMES = ("data.name", "backbone.name", "backbone.preprocessing", "backbone.layers")

HERE = pathlib.Path(__file__).parents[1]
PRESETS = (HERE.parent / "configs", HERE / "configs")  # of a checkout, and of the installed package


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key, what was received and what was expected."""


def load_config(path: str, overrides: Sequence[str] = (), is_finished: bool = False) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and `${oc.env:NAME,default}`, and check the result.

    Overrides are read by the type that the schema gives their key, and to the letter. For `is_finished` see
    `check_config`.

    Raises:
        ConfigError: one message for all that is wrong, before any data is read.
    """
    return check_config(read_values(path, overrides), path, is_finished)


def read_values(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `load_config` checks, nested. Raises ConfigError for what is no config at all."""
    path = str(find_config(path))
    malformed = [override for override in overrides if not re.match(r"[^=.]+(\.[^=.]+)*=", override)]
    if malformed:
        raise ConfigError(
            f"Received --set {malformed[0]!r}; expected section.key=value, such as --set training.epochs=5."
        )
    try:
        # OmegaConf asserts, without a word, that a document is no single text.
        if not isinstance(yaml.compose(pathlib.Path(path).read_text("utf-8"), yaml.SafeLoader), yaml.MappingNode):
            raise ConfigError(f"Received {path}, which holds no sections; expected keys such as data: and backbone:.")
        values: Any = omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.load(path))
        values = retired.renamed(values)  # before an override, over which an old key of the file would come else
        for keys, value in override_text.parse(overrides, values):
            key = ".".join(keys)
            put(values, retired.RENAMED.get(key, key).split("."), _escaped(value))
        values = omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.create(values), resolve=True)
    except ConfigError:
        raise
    except Exception as error:  # YAML's constructors raise what they like, such as KeyError for `!!bool x`
        about = f"{error}" or type(error).__name__
        raise ConfigError(
            f"Received {path}, which cannot be read as a config: {about}. Mend it, or put text in quotes."
        ) from error
    return values


def presets() -> dict[str, pathlib.Path]:
    """The package's own configs by name."""
    return {file.stem: file for folder in PRESETS for file in sorted(folder.glob("*.yaml"))}


def find_config(path: str) -> pathlib.Path:
    """The file of a config: that path, or of the package's own the one of that name, such as "grocery".

    Raises ConfigError where there is none.
    """
    if pathlib.Path(path).is_file():
        return pathlib.Path(path)
    own = presets()
    name = path.removesuffix(".yaml").removeprefix("configs/")
    if name in own:
        return own[name]
    if (pathlib.Path(path) / "config.yaml").is_file():
        raise ConfigError(f"Received --config {path!r}, a folder; expected a file. Say --config {path}/config.yaml.")
    near = difflib.get_close_matches(pathlib.Path(name).name, own, n=1)
    raise ConfigError(
        f"Received --config {path!r}, which is no file; expected a YAML file, or one of the package's own: "
        f"{', '.join(own)}. {f'Did you mean {near[0]}?' if near else 'Mend the path.'}"
    )


def check_config(values: dict[str, Any], origin: str, is_finished: bool = False) -> Config:
    """Validate nested dicts, in which keys may stand that there were once.

    Args:
        values: nested.
        origin: what they are of, for the message.
        is_finished: whether they are of a finished run, of which what trained it matters no more.

    Raises:
        ConfigError: with one line per problem.
    """
    # Such as a path of other bytes on the command line; no YAML file could hold it.
    texts = json.dumps(values, default=str, ensure_ascii=False, skipkeys=True)
    if odd := re.search(r'"([^"]*[\ud800-\udfff][^"]*)"', texts):
        raise ConfigError(f"{origin} cannot be run:\n  received {odd[1]!r}; expected text that is valid Unicode")
    values, lines = retired.translated(values, is_finished)
    cause = None
    try:
        config = Config.model_validate(values)
    except pydantic.ValidationError as error:
        # A union of plain types gives one error for each member: the first says it.
        told = {".".join(_locate(details["loc"])[1]): _explain(details) for details in reversed(error.errors())}
        lines, cause = [*lines, *told.values()], error
    if lines:
        raise ConfigError(f"{origin} cannot be run:\n" + "\n".join(f"  {line}" for line in lines)) from cause
    return config


def save_config(config: Config, path: pathlib.Path) -> None:
    """Write the resolved config; it runs again as it is."""
    write_whole(path, to_yaml(config.model_dump(mode="json")))


def to_yaml(values: dict[str, Any]) -> str:
    """Values of a config as a document that `load_config` reads as the same values, whatever their texts are."""
    return yaml.dump_all([_escaped(values)], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that is no plain name: OmegaConf reads more of them as numbers than YAML 1.1 does."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_name = re.fullmatch(r"[A-Za-z_][\w./-]*", text, re.ASCII)
    style = None if is_name else "'" if text.isprintable() else '"'  # line breaks change in single quotes
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)


def _escaped(value: Any) -> Any:
    """The value, in whose texts nothing is interpolated when OmegaConf resolves them."""
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def put(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested value; mappings are merged."""
    for key in keys[:-1]:
        inside = values.get(key)
        values[key] = inside if isinstance(inside, dict) else {}
        values = values[key]
    old = values.get(keys[-1])
    if isinstance(old, dict) and isinstance(value, dict):
        for key, each in value.items():
            put(old, [key], each)
    else:
        values[keys[-1]] = value


def public_values(config: Config) -> dict[str, Any]:
    """What of a config may be shown to others: its choices, numbers and switches.

    Texts that a user is free to write are left out, but for a few names: they may be paths, or come from the
    environment, and a reader has no use for them.
    """
    return {name: _public(getattr(config, name), name) for name in SHOWN}


def _public(section: Section, prefix: str) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}.{name}"
        if isinstance(value, Section):
            shown[name] = _public(value, key)
        elif key in NAMES or not _is_free_text(field.annotation):
            shown[name] = value
    return shown


def _is_free_text(annotation) -> bool:
    """Whether values of a type may hold any text: not where they are chosen from a list."""
    if annotation is str or annotation is Any:
        return True
    is_choice = typing.get_origin(annotation) is typing.Literal
    return not is_choice and any(map(_is_free_text, typing.get_args(annotation)))


def _keys_of(section: str) -> set[str]:
    """Of a section, whichever of its kinds has them."""
    kinds = members_of(Config.model_fields[section].annotation)
    return {key for kind in kinds if is_section(kind) for key in kind.model_fields}


def _explain(details) -> str:
    """One problem in one line: the key, what was received, what was expected."""
    section, keys = _locate(details["loc"])
    key = ".".join(keys)
    kind, message = details["type"], details["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = sorted(section.model_fields)
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        if section is Config and (inside := [f"{outer}.{key}" for outer in known if key in _keys_of(outer)]):
            return f"{key}: unknown section; did you mean the key {' or '.join(inside)}?"
        return f"{key}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}")
    if kind == "missing":
        return f"{key}: missing; it has no default"
    if kind == "union_tag_not_found":
        return f"{key}.{details['ctx']['discriminator'].strip(chr(39))}: missing; it has no default"
    if kind == "union_tag_invalid":
        tag, known = details["ctx"]["tag"], details["ctx"]["expected_tags"].replace("'", "")
        near = difflib.get_close_matches(tag, known.split(", "), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return (
            f"{key}.{details['ctx']['discriminator'].strip(chr(39))}: received {tag!r}; expected one of {known}{hint}"
        )
    message = message[0].lower() + message[1:].removesuffix(".") + ", such as [a, b]" * (kind == "list_type")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: received {details['input']!r}; {message}"


def _locate(location: tuple[int | str, ...]) -> tuple[type[Section], list[str]]:
    """The section of the schema that an error lies in, and the keys as a user writes them.

    Pydantic's location also holds the tag of a chosen member of a union, or the name of a member's type.
    """
    section: type[Section] = Config
    members: dict[str, type[Section]] = {}
    keys: list[str] = []
    for part in map(str, location):
        if part in members:
            section, members = members[part], {}
        elif part in section.model_fields:
            field = section.model_fields[part]
            members_of = (field.annotation, *typing.get_args(field.annotation))
            sections = [t for t in members_of if is_section(t)]
            if isinstance(field.discriminator, pydantic.Discriminator):
                members = {t.__metadata__[0].tag: t.__origin__ for t in members_of if hasattr(t, "__metadata__")}
            elif field.discriminator:
                members = {t.tag[1]: t for t in sections if t.tag}
            elif sections:
                section = sections[0]
            keys.append(part)
        elif not keys or keys[-1] not in section.model_fields:  # below a plain value stand types, not keys
            keys.append(part)
    return section, keys


@contextlib.contextmanager
def blaming_config() -> Iterator[None]:
    """What a stage refuses here, the config asked for."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error
