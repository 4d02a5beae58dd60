"""How a row of a source becomes the features of a model: the same when data are prepared and when a model is asked.

A dataset that was made of rows with named columns keeps a `RowSchema`, and a model that was trained on it keeps it
too, so that it can be asked with rows of the source: with its names, its way to write numbers, and its gaps. Imports
pydantic only.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from models.records import Frozen

NUMBERS = "numbers"
"""The feature that holds all columns of numbers."""

MISSING_WORDS = ("NA", "N/A", "n/a", "#N/A", "<NA>", "?", "-", "null", "NULL", "None", "NaN", "nan")
"""What stands for a missing value, beside nothing."""

SIGNS = "$€£¥₹%"
"""Currencies and others that may stand before or behind every number of a column."""

BLANKS = "[ \u00a0\u2009\u202f]"
"""The blanks that people and spreadsheets write within a number, as a regular expression."""

_MARKS: Mapping[str, str] = {" ": BLANKS, "'": "['\u2019]"}  # the Swiss write either apostrophe

DatePart = Literal["year", "month", "day", "weekday", "hour", "seconds"]


class RowError(ValueError):
    """A row does not fit; as text, what is wrong and how to mend it."""

    def __init__(self, field: str | None, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class _Brief(Frozen):
    """A record that is written without what is as usual: a wide table has ten thousand of them."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        usual = _usual(type(self))
        return {name: value for name, value in write(self).items() if getattr(self, name) != usual.get(name, ...)}


@cache
def _usual(kind: type[_Brief]) -> dict[str, Any]:
    """Return the values that are not written."""
    return {name: field.default for name, field in kind.model_fields.items() if name != "kind"}


class Notation(_Brief):
    """How the numbers of a column are written."""

    decimal: Literal[".", ","] = "."
    thousands: Literal["", ",", ".", " ", "'"] = ""
    sign: str = Field(default="", max_length=12)
    """One of `SIGNS` that stands with every number, or a unit behind each of them, such as ``kg``."""


class NumberColumn(_Brief):
    """A column of numbers: one number of the vector."""

    kind: Literal["number"] = "number"
    notation: Notation = Notation()
    fill: float | None = None
    """What a missing value becomes; without it, a missing value is refused."""
    indicator: bool = False
    """Whether another number of the vector says (1) that the value is missing."""


class DateColumn(_Brief):
    """A column of dates: a number of the vector for each part."""

    kind: Literal["date"] = "date"
    format: str = Field(default="", max_length=100)
    """As `datetime.strptime` reads it; nothing stands for ISO 8601."""
    parts: Annotated[tuple[DatePart, ...], Field(min_length=1, max_length=6)]
    fills: tuple[float, ...] | None = None
    """What each part becomes where the date is missing."""
    indicator: bool = False


class CategoryColumn(_Brief):
    """A column of categories: a feature of its own."""

    kind: Literal["category"] = "category"
    feature: str
    missing: str | None = None
    """The category that a missing value is; without it, a missing value is refused."""
    keeps_words: bool = False
    """Whether `NA`, `None` and the like are categories like others."""


class TextColumn(Frozen):
    """A column of texts: a feature of its own."""

    kind: Literal["text"] = "text"
    feature: str


RowColumn = Annotated[NumberColumn | DateColumn | CategoryColumn | TextColumn, Field(discriminator="kind")]


class RowSchema(Frozen):
    """The columns of a source that a model reads."""

    columns: dict[str, RowColumn]
    ignored: tuple[str, ...] = ()
    """Columns of the source that no model reads, the target among them; a row may have them."""
    missing_words: tuple[str, ...] = MISSING_WORDS


def vector_names(name: str, column: RowColumn) -> tuple[str, ...]:
    """Return what the numbers of a column are called in the vector."""
    match column:
        case NumberColumn():
            names: tuple[str, ...] = (name,)
        case DateColumn():
            names = tuple(f"{name} {part}" for part in column.parts)
        case _:
            return ()
    return (*names, f"{name} is missing") if column.indicator else names


def features_of(row: Mapping[str, Any], schema: RowSchema) -> dict[str, Any]:
    """Return the features that a row of the source stands for, as a request names them.

    Raises:
        RowError: if a column is unknown or missing, or a value does not fit its column.
    """
    for name in row:
        if name not in schema.columns and name not in schema.ignored:
            known = ", ".join(schema.columns)
            raise RowError(name, "unknown_field", f"a field must be one of {known}, got {name[:60]!r}.")
    found: dict[str, Any] = {}
    for name, column in schema.columns.items():
        value = row.get(name)
        match column:
            case CategoryColumn():
                found[column.feature] = _category(name, value, column, schema)
            case TextColumn():
                found[column.feature] = _present(name, value, given=name in row)
            case _:
                numbers = dict(zip(vector_names(name, column), _numbers(name, value, column, schema), strict=True))
                found.setdefault(NUMBERS, {}).update(numbers)
    return found


def filled_columns(row: Mapping[str, Any], schema: RowSchema) -> list[str]:
    """Return the columns of a row that have no value, so that a model reads what the dataset fills them with."""
    found = []
    for name, column in schema.columns.items():
        words = () if isinstance(column, CategoryColumn) and column.keeps_words else schema.missing_words
        if not isinstance(column, TextColumn) and is_missing(row.get(name), words):
            found.append(name)
    return found


def is_missing(value: Any, words: tuple[str, ...]) -> bool:
    """Whether a value stands for nothing."""
    return value is None or (isinstance(value, str) and (not value.strip() or value.strip() in words))


def number_pattern(notation: Notation) -> str:
    """Return the regular expression of a number in a notation, for Python and for RE2."""
    point, sign, minus = re.escape(notation.decimal), re.escape(notation.sign), "[+\u2212-]?"
    whole = rf"([1-9]\d{{0,2}}({mark_pattern(notation.thousands)}\d{{3}})+|\d+)" if notation.thousands else r"\d+"
    bare = rf"({whole}({point}\d*)?|{point}\d+)([eE][+-]?\d+)?"
    if not sign:
        return rf"^{minus}{bare}$"
    behind = rf"{minus}{bare}{BLANKS}?{sign}"
    if notation.sign not in SIGNS:
        return rf"^{behind}$"
    return rf"^({minus}{sign}{BLANKS}?{bare}|{sign}{BLANKS}?{minus}{bare}|{behind})$"


def mark_pattern(mark: str) -> str:
    """Return the regular expression of what separates thousands, as people write it."""
    return _MARKS.get(mark, re.escape(mark))


def sign_pattern(sign: str) -> str:
    """Return the regular expression of a sign, or of a unit, with the blanks beside it."""
    return f"{BLANKS}?{re.escape(sign)}{BLANKS}?" if sign in SIGNS else f"{BLANKS}?{re.escape(sign)}$"


def number_of(text: str, notation: Notation) -> float | None:
    """Return the number that a text is in a notation, if it is one."""
    if not _matcher(notation)(text.strip()):
        return None
    plain = re.sub(sign_pattern(notation.sign), "", text.strip()) if notation.sign else text.strip()
    if notation.thousands:
        plain = re.sub(mark_pattern(notation.thousands), "", plain)
    return float(plain.replace(notation.decimal, ".").replace("\u2212", "-"))


def date_parts(date: datetime, parts: tuple[DatePart, ...]) -> tuple[float, ...]:
    """Return the parts of a date as numbers; Monday is weekday 0, seconds are since 1970, in UTC."""
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    values: dict[str, Callable[[], float]] = {
        "year": lambda: date.year,
        "month": lambda: date.month,
        "day": lambda: date.day,
        "weekday": date.weekday,
        "hour": lambda: date.hour + date.minute / 60 + date.second / 3600,
        "seconds": aware.timestamp,
    }
    return tuple(float(values[part]()) for part in parts)


def date_of(text: str, format: str) -> datetime | None:
    """Return the date that a text is in a format (nothing: ISO 8601), if it is one."""
    try:
        return datetime.strptime(text.strip(), format) if format else datetime.fromisoformat(text.strip())
    except ValueError:
        return None


@cache
def _matcher(notation: Notation) -> Callable[[str], object]:
    return re.compile(number_pattern(notation)).match


def _numbers(name: str, value: Any, column: NumberColumn | DateColumn, schema: RowSchema) -> Iterator[float]:
    gone = is_missing(value, schema.missing_words)
    if isinstance(column, NumberColumn):
        yield _filled(name, column.fill) if gone else _number(name, value, column.notation)
    elif gone:
        yield from _filled(name, column.fills)
    else:
        yield from date_parts(_date(name, value, column), column.parts)
    if column.indicator:
        yield float(gone)


def _filled(name: str, fill: Any) -> Any:
    if fill is None:
        raise RowError(name, "missing_field", f"{name} must be given, got no value.")
    return fill


def _number(name: str, value: Any, notation: Notation) -> float:
    if isinstance(value, str):
        found = number_of(value, notation)
        if found is None and notation.sign:  # which a person may leave out
            found = number_of(value, notation.model_copy(update={"sign": ""}))
        if found is None:
            raise RowError(
                name, "wrong_type", f"{name} must be a number, written like {example_of(notation)}, got other text."
            )
        value = found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(name, "wrong_type", f"{name} must be a number, got {_kind(value)}.")
    if not math.isfinite(value):
        raise RowError(name, "out_of_range", f"{name} must be a finite number, got another.")
    return float(value)


def example_of(notation: Notation) -> str:
    """Return a number as it is written, such as ``$1,234.5`` or ``1234.5 kg``."""
    number = f"1{notation.thousands}234{notation.decimal}5"
    if notation.sign not in SIGNS:
        return f"{number} {notation.sign}"
    return f"{number}{notation.sign}" if notation.sign == "%" else f"{notation.sign}{number}"


def _date(name: str, value: Any, column: DateColumn) -> datetime:
    date = date_of(value, column.format) if isinstance(value, str) else None
    if date is None:
        form = f"like {column.format}" if column.format else "in ISO 8601"
        raise RowError(name, "wrong_type", f"{name} must be a date {form}, got {_kind(value)}.")
    return date


def _category(name: str, value: Any, column: CategoryColumn, schema: RowSchema) -> Any:
    if not is_missing(value, () if column.keeps_words else schema.missing_words):
        return value.strip() if isinstance(value, str) else value
    if column.missing is None:
        raise RowError(name, "missing_field", f"{name} must be given, got no value.")
    return column.missing


def _present(name: str, value: Any, *, given: bool) -> Any:
    if not given or value is None:
        raise RowError(name, "missing_field", f"{name} must be given, got no value.")
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "a truth value", str: "other text", dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value), "a number")
