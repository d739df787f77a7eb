"""Conditions on the columns of items, in the words of SQL: "style = 'flat' and (year > 2019 or year is null)".

Comparisons (= <> != < <= > >=), `in (...)`, `is null`, and, or, not; text in single quotes, numbers, true, false; names
with other signs than letters, digits and _ in double quotes. Times are text of ISO 8601. As in SQL, a comparison with a
missing value is neither true nor false, and what is not true is left out. A number that is none (NaN) is missing.
"""

import datetime
import functools
import re

import numpy as np
import pyarrow
import pyarrow.compute

COMPARISONS = {
    "=": pyarrow.compute.equal, "==": pyarrow.compute.equal, "!=": pyarrow.compute.not_equal,
    "<>": pyarrow.compute.not_equal, "<": pyarrow.compute.less, "<=": pyarrow.compute.less_equal,
    ">": pyarrow.compute.greater, ">=": pyarrow.compute.greater_equal,
}  # fmt: skip
WORDS = {"and", "or", "not", "in", "is", "null", "true", "false"}
TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)|(?P<text>'(?:[^']|'')*')"
    r'|(?P<quoted>"(?:[^"]|"")+")|(?P<word>[^\W\d]\w*)|(?P<sign><=|>=|<>|!=|==|[=<>(),])|(?P<end>$))'
)


class ConditionError(ValueError):
    """A condition that cannot be read, or a library of approximate search that has no filter."""


def meets(items: pyarrow.Table, condition: str) -> np.ndarray:
    """Which of the items [N] meet a condition, bool.

    Raises:
        ConditionError: for a condition that cannot be read, a column that is not there, or one of another type.

    Example:
        >>> meets(pyarrow.table({"year": [2019, 2021, None]}), "year > 2019 or year is null").tolist()
        [False, True, True]
    """
    return pyarrow.compute.fill_null(_Reader(items, condition).read(), False).to_numpy()


def without_nan(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """A column, missing where it is no number, which libraries compare in ways of their own."""
    if not pyarrow.types.is_floating(column.type):
        return column
    return pyarrow.compute.if_else(pyarrow.compute.is_nan(column), pyarrow.scalar(None, column.type), column)


def sql_of(schema: pyarrow.Schema, condition: str) -> str:
    """A condition in the SQL of DataFusion, which LanceDB takes. Raises ConditionError as `meets` does.

    Example:
        >>> sql_of(pyarrow.schema({"at": pyarrow.date32()}), "at > '2020-01-31'")
        "`at` > DATE '2020-01-31'"
    """
    reader = _Reader(schema.empty_table(), condition)
    reader.read()
    return " ".join(reader.written)


class Condition:
    """Which items of a gallery are to be found, for a library that finds them.

    Args:
        items: N rows.
        keys: [N], theirs in the library.
        text: what they are to meet: see `meets`.
    """

    def __init__(self, items: pyarrow.Table, keys: np.ndarray, text: str):
        self._items, self._keys, self._text = items, keys, text

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """Of the items that meet it. Raises ConditionError as `meets` does."""
        return self._keys[meets(self._items, self._text)]

    @functools.cached_property
    def sql(self) -> str:
        """For a library that holds the items' columns. Raises ConditionError as `meets` does."""
        return sql_of(self._items.schema, self._text)


class _Reader:
    """One condition on a table, read from left to right, and written as SQL."""

    def __init__(self, items: pyarrow.Table, text: str):
        self.items, self.text, self.place = items, text, 0
        self.written: list[str] = []
        self.place_of_column, self.kind, self.value = 0, "", ""
        self._advance()

    def read(self) -> pyarrow.ChunkedArray:
        """Which rows meet it, null where that cannot be told."""
        try:
            found = self._either()
        except RecursionError as error:
            raise ConditionError(
                f"Received a condition of {len(self.text)} signs, nested too deeply; expected a simpler one. Leave out "
                "parentheses."
            ) from error
        if self.kind != "end":
            raise self._error("and, or, or the end")
        return found

    def _either(self):
        found = self._both()
        while self._takes("or"):
            found = pyarrow.compute.or_kleene(found, self._both())
        return found

    def _both(self):
        found = self._one()
        while self._takes("and"):
            found = pyarrow.compute.and_kleene(found, self._one())
        return found

    def _one(self):
        if self._takes("not"):
            return pyarrow.compute.invert(self._one())
        if self._takes("("):
            found = self._either()
            self._require(")")
            return found
        return self._comparison()

    def _comparison(self):
        name, column = self._column()
        if self._takes("is"):
            is_not = self._takes("not")
            self._require("null")
            return pyarrow.compute.is_valid(column) if is_not else pyarrow.compute.is_null(column)
        is_not = self._takes("not")
        if self._takes("in"):
            self._require("(")
            found = self._compared("=", name, column)
            while self._takes(","):
                found = pyarrow.compute.or_kleene(found, self._compared("=", name, column))
            self._require(")")
            return pyarrow.compute.invert(found) if is_not else found
        if is_not or self.value not in COMPARISONS:
            raise self._error("in" if is_not else "a comparison, in, or is")
        sign = self.value
        self._advance()
        return self._compared(sign, name, column)

    def _column(self):
        if self.kind not in ("word", "quoted") or self.value in WORDS:
            raise self._error("the name of a column, or text on the right side alone")
        name = self.value
        if name not in self.items.column_names:
            raise ConditionError(
                f"Received a condition on {name!r}; expected one of the items' columns, "
                f"{', '.join(self.items.column_names)}. Text stands in single quotes."
            )
        self.place_of_column = len(self.written)
        self._advance()
        column = without_nan(self.items[name])
        # Where there is nothing yet, there may be no column in a library.
        self.written[-1] = "NULL" if pyarrow.types.is_null(column.type) else _quoted(name)
        return name, column.cast(column.type.value_type) if pyarrow.types.is_dictionary(column.type) else column

    def _compared(self, sign: str, name: str, column):
        """The column with the literal that comes next, text taken as the type of the column."""
        if self.kind not in ("number", "text") and self.value not in ("true", "false"):
            raise self._error("text in single quotes, a number, true or false")
        written = self.value
        try:
            value = pyarrow.scalar(self._literal())
            if self.kind == "text":
                value = value.cast(column.type)
            found = COMPARISONS[sign](column, value)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise ConditionError(
                f"Received a condition that compares {name!r}, of the type {column.type}, with {written!r} ({error}); "
                "expected a value of that type. Put text and times in single quotes, and numbers in none."
            ) from error
        if pyarrow.types.is_integer(column.type) and pyarrow.types.is_floating(value.type):
            self.written[self.place_of_column] = f"CAST({_quoted(name)} AS DOUBLE)"
        self._advance()
        self.written[-1] = _sql_of(value.as_py())
        return found

    def _literal(self):
        if self.kind == "text":
            return self.value
        if self.kind == "number":
            return int(self.value) if re.fullmatch(r"[-+]?\d+", self.value) else float(self.value)
        return self.value == "true"

    def _advance(self) -> None:
        """Write the token that was read, and read the next one."""
        if self.kind:
            self.written.append("=" if self.value == "==" else self.value)
        token = TOKEN.match(self.text, self.place)
        if token is None:
            self.kind, self.value = "sign", self.text[self.place :].strip()[:20]
            raise self._error("names, text, numbers and comparisons")
        self.place, self.kind = token.end(), token.lastgroup or "sign"
        self.value = token[self.kind]
        if self.kind in ("text", "quoted"):
            quote = self.value[0]
            self.value = self.value[1:-1].replace(2 * quote, quote)
        elif self.kind == "word" and self.value.lower() in WORDS:
            self.kind, self.value = "sign", self.value.lower()

    def _takes(self, sign: str) -> bool:
        """Whether this sign or word comes next, which then is read."""
        found = self.kind == "sign" and self.value == sign
        if found:
            self._advance()
        return found

    def _require(self, sign: str) -> None:
        if not self._takes(sign):
            raise self._error(repr(sign))

    def _error(self, expected: str) -> ConditionError:
        found = "its end" if self.kind == "end" else repr(self.value)
        return ConditionError(
            f"Received the condition {self.text!r}, with {found} before sign {self.place}; expected {expected} there. "
            "Write it as in SQL: \"style = 'flat' and year > 2019\"."
        )


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _sql_of(value) -> str:
    """A value of a column as DataFusion writes it."""
    if isinstance(value, datetime.datetime):
        return f"TIMESTAMP '{value.isoformat(sep=' ')}'"
    if isinstance(value, datetime.date):
        return f"DATE '{value.isoformat()}'"
    return str(value).lower() if isinstance(value, bool | int | float) else "'" + str(value).replace("'", "''") + "'"
