"""The section `search` of configs/*.yaml: which keys tune.py varies, and between what."""

from typing import Any

import pydantic
from pydantic import Field

from xbm_keras.config.sections import Section

Value = bool | int | float | str | None
FORMS = "[a, b, c], or {min: a, max: b, log: true}, or {values: [a, b, c], when: {other.key: [x]}}"


class Dimension(Section):
    """The values of one key: some, or a range, whole numbers where both ends are written as such."""

    values: list[Value] | None = Field(default=None, min_length=1)
    min: int | float | None = None
    max: int | float | None = None
    log: bool = False
    when: dict[str, list[Value]] = Field(default={})
    """Other keys of the space and the values of theirs under which this key is searched; else the default holds."""

    @pydantic.model_validator(mode="after")
    def _is_list_or_range(self):
        ends = (self.min, self.max)
        if (self.values is None) == (ends == (None, None)):
            raise ValueError("expected either values, or min and max")
        if self.values is None:
            if self.min is None or self.max is None or not self.min < self.max:
                raise ValueError(f"received min {self.min} and max {self.max}; expected min below max")
            if self.log and self.min <= 0:
                raise ValueError(f"received log: true from {self.min}; expected min above 0, or a list that names 0")
        return self


class SearchSection(Section):
    """What tune.py searches."""

    space: dict[str, list[Dimension]] | None = None
    """Key of the config to its values. By default memory size, k, loss, head and optimizer; see docs/tune.md."""

    @pydantic.field_validator("space", mode="before")
    @classmethod
    def _read(cls, space: Any):
        if not isinstance(space, dict):
            return space
        return {key: _dimensions(key, given) for key, given in space.items()}


def _dimensions(key: str, given: Any) -> list[Dimension]:
    """What the user wrote for a key: a list of values, one dimension, or several, each with its own `when`."""
    if isinstance(given, list) and not all(isinstance(each, dict | Dimension) for each in given):
        given = {"values": given}
    found = []
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, dict):
            when = each.get("when") or {}
            lists = {k: v if isinstance(v, list) else [v] for k, v in when.items()} if isinstance(when, dict) else when
            each = {**each, "when": lists}
        try:
            found.append(Dimension.model_validate(each))
        except pydantic.ValidationError as error:
            details = error.errors()[0]
            where = "".join(f"{part}: " for part in details["loc"][:1])
            message = details["msg"].removeprefix("Value error, ")
            raise ValueError(f"{key}: {where}{message[0].lower()}{message[1:]}; write {FORMS}") from error
    if not found:
        raise ValueError(f"{key}: received no values; write {FORMS}")
    return found
