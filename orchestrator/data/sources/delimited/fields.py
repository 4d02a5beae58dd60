"""What a column of a table is: numbers, dates or categories, and how they are written."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.preparing.rows import (
    MISSING_WORDS,
    CategoryColumn,
    DateColumn,
    Notation,
    NumberColumn,
    RowColumn,
    date_of,
    date_parts,
    number_pattern,
)
from orchestrator.data.columns import Array
from orchestrator.data.precision import merged
from orchestrator.data.sources.delimited.notations import (
    all_match,
    asked_notation,
    notation_notes,
    notation_of,
    numbers_in,
    other_notations,
)
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.rows import LARGEST, Delimited, distinct

_FEW, _MOST_CATEGORIES = 20, 1000
_DATE = (
    r"^\d{4}-\d{1,2}-\d{1,2}([T ].*)?$|^\d{1,2}[./-]\d{1,2}[./-]\d{2,4}( .*)?$|^\d{4}/\d{1,2}/\d{1,2}( .*)?$"
    r"|^\d{1,2}[- ][A-Za-z]{3,9}[- ]\d{4}( .*)?$|^[A-Za-z]{3,9} \d{1,2}, \d{4}( .*)?$"
)
_FORMATS = tuple(
    f"{day}{time}"
    for day, time in product(
        (
            *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%d-%b-%Y", "%d %b %Y"),
            *("%d %B %Y", "%b %d, %Y", "%B %d, %Y"),
        ),
        ("", " %H:%M", " %H:%M:%S"),
    )
)
EXACT = 2.0**53  # whole numbers up to here have a float each
CODE = r"^0\d+$"
CODE_LENGTH = 3  # months and days have two digits
_ID_NAMES = ("id", "index", "uuid", "guid")
_ID = re.compile(r"(^|[_ -])(id|ID|Id)$|[a-z]I[dD]$|^(row[ ._]?names|[Uu]nnamed: [\d.]+)$")
"""user_id and userId, but neither paid nor COVID; and how R and pandas call the numbers of rows."""


class FieldError(Exception):
    """A column is neither numbers nor dates nor categories; as text, why. `cure`: what mends it, without its end."""

    def __init__(self, reason: str, cure: str = "", *, found: str = "") -> None:
        super().__init__(reason)
        self.cure = cure
        self.found = found or reason


class Words(NamedTuple):
    """A column of categories."""

    codes: Array
    """[N] int32, numbers of the words."""
    words: list[str]


@dataclass(frozen=True, eq=False)
class Field:
    """A column, as it was read."""

    name: str
    column: RowColumn
    is_missing: Array
    """[N] bool."""
    words: Words | None = None
    """Of categories."""
    numbers: tuple[Array, ...] = ()
    """[N] of each number that the column becomes: float32, or float64 where 32 bits are not enough; NaN if missing."""
    notes: tuple[str, ...] = field(default=())

    @property
    def is_numeric(self) -> bool:
        """Whether the column is part of the vector."""
        return bool(self.numbers)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All that there is a value of for each row."""
        return (self.is_missing, *self.numbers, *([self.words.codes] if self.words else []))

    def changed(self, change: Callable[[Array], Array]) -> "Field":
        """Return the column with each of its arrays changed."""
        return replace(
            self,
            is_missing=change(self.is_missing),
            words=self.words and Words(change(self.words.codes), self.words.words),
            numbers=tuple(map(change, self.numbers)),
        )


def read_field(rows: Delimited, name: str, options: SourceOptions) -> Field:
    """Return what a column is.

    Raises:
        FieldError: if it is neither numbers nor dates nor categories.
    """
    if name not in (options.categories or ()) and asked_notation(options).decimal == ".":
        numbers = _plain_numbers(rows, name)
        if numbers is not None:
            _refuse_codes(name, rows.parts(name), options)
            _refuse_identifier(name, lambda: rows.trimmed(name), numbers, options)
            gone = np.broadcast_to(np.False_, len(rows))
            return _of_numbers(name, NumberColumn(), lambda: rows.trimmed(name), gone, numbers)
    return _read_texts(rows, name, rows.trimmed(name), options)


def _read_texts(rows: Delimited, name: str, texts: pa.ChunkedArray, options: SourceOptions) -> Field:
    gone = missing_in(texts, name, options)
    if gone.all():
        raise FieldError("nothing in any row", found="nothing in any row")
    present = pc.filter(texts, pa.array(~gone)) if gone.any() else texts
    if name in (options.categories or ()):
        return _of_categories(name, texts, gone)
    notation = notation_of(present, options)
    if notation is not None:
        _refuse_codes(name, present.chunks, options)
        numbers = _with_gaps(numbers_in(present, notation), gone)
        _refuse_identifier(name, lambda: present, numbers[~gone], options)
        notes = notation_notes(present, name, notation)
        return _of_numbers(name, NumberColumn(notation=notation), lambda: texts, gone, numbers, notes)
    if all_match(present, _DATE) or (options.date_format and _parses(present, options.date_format)):
        return _of_dates(name, gone, present, options)
    _refuse_no_category(rows, name, texts, gone, present)
    return _of_categories(name, texts, gone)


def _of_categories(name: str, texts: pa.ChunkedArray, gone: Array) -> Field:
    return Field(name, CategoryColumn(feature=name), gone, Words(*distinct(texts)))


def missing_in(texts: pa.ChunkedArray, name: str, options: SourceOptions) -> Array:
    """Return where a column has no value, [N] bool."""
    words = ["", *missing_words(options)] if policy_of(name, options) != "keep" else [""]
    gone: Array = pc.is_in(texts, value_set=pa.array(words, pa.string())).to_numpy()
    return gone


def missing_words(options: SourceOptions) -> tuple[str, ...]:
    """Return the words for a missing value."""
    return tuple(dict.fromkeys((*MISSING_WORDS, *(options.missing_words or ()))))


def policy_of(name: str, options: SourceOptions) -> str:
    """Return what is to be done with the missing values of a column."""
    found = options.missing or "refuse"
    policy = found.get(name, found.get("*", "refuse")) if isinstance(found, dict) else found
    if policy == "interpolate":
        raise ConfigError("missing must be refuse, drop, mean, median, category or keep for a table, got interpolate.")
    return policy


def _plain_numbers(rows: Delimited, name: str) -> Array | None:
    """Return a column of finite numbers without a gap, [N] float64; None if it is something else."""
    found = []
    for part in rows.columns.parts(name):
        try:
            numbers = pc.cast(part, pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            try:
                numbers = pc.cast(pc.utf8_trim_whitespace(part), pa.float64()).to_numpy()
            except pa.ArrowInvalid:
                return None
        if not np.isfinite(numbers).all():
            return None
        found.append(numbers)
    return found[0] if len(found) == 1 else np.concatenate(found)


def _of_numbers(
    name: str,
    column: NumberColumn,
    texts: Callable[[], pa.ChunkedArray],
    gone: Array,
    numbers: Array,
    notes: tuple[str, ...] = (),
) -> Field:
    largest = max(np.nanmax(numbers), -np.nanmin(numbers))
    if largest > LARGEST:
        row = int(np.nanargmax(np.abs(numbers)))
        raise FieldError(f"{texts()[row].as_py()!r}, which does not fit 32 bits", found="numbers beyond 32 bits")
    if largest > EXACT:
        present = pc.filter(texts(), pa.array(~gone))
        if len(np.unique(numbers[~gone])) < len(distinct(present)[1]):
            word = in_brackets([name])
            reason = f"{present[0].as_py()!r} and the like, of which 64 bits cannot tell all apart"
            raise FieldError(reason, f"make them categories with --option 'categories={word}'")
    return Field(name, column, gone, numbers=(_stored(numbers),), notes=notes)


def _stored(numbers: Array) -> Array:
    """Return numbers in 32 bits unless values would be lost; -0 is 0."""
    return numbers + 0.0 if merged(numbers) else numbers.astype(np.float32) + np.float32(0)


def _with_gaps(numbers: Array, gone: Array) -> Array:
    if not gone.any():
        return numbers
    whole = np.full(len(gone), np.nan)
    whole[~gone] = numbers
    return whole


# ---- dates


def _of_dates(name: str, gone: Array, present: pa.ChunkedArray, options: SourceOptions) -> Field:
    if not options.dates:
        raise FieldError("dates", "make numbers of dates with --option 'dates=[year, month, day, weekday]'")
    codes, words = distinct(present)
    format = _format_of(words, options)
    parts = [date_parts(date, options.dates) for word in words if (date := date_of(word, format))]
    columns = np.array(parts, np.float64)[codes].T
    column = DateColumn(format=format, parts=options.dates)
    note = f"made {', '.join(options.dates)} of the dates in {name}, read as {format or 'ISO 8601'}"
    return Field(name, column, gone, numbers=tuple(_stored(_with_gaps(c, gone)) for c in columns), notes=(note,))


def _format_of(words: Sequence[str], options: SourceOptions) -> str:
    """Return the format that all dates have, that which is asked for if it is; nothing stands for ISO 8601."""
    if options.date_format and _fits(words, options.date_format):
        return options.date_format
    fits = [format for format in ("", *_FORMATS) if _fits(words, format)]
    fits = [format for format in fits if "%B" not in format or format.replace("%B", "%b") not in fits]  # May
    if len(fits) != 1:
        ways = " or ".join(f"--option date_format='{format}'" for format in fits)
        ways = ways or "--option date_format=FORMAT, which is '%d.%m.%y' for 31.12.99"
        raise FieldError(f"dates such as {words[0]!r} that fit {len(fits)} formats", f"say which with {ways}")
    return fits[0]


def _fits(words: Sequence[str], format: str) -> bool:
    return all(date_of(word, format) for word in words)


def _parses(present: pa.ChunkedArray, format: str) -> bool:
    return _fits(distinct(present)[1], format)


# ---- what is refused


def is_identifier(name: str) -> bool:
    """Return whether a column is called as identifiers are."""
    return name.lower() in _ID_NAMES or _ID.search(name) is not None


def _refuse_identifier(name: str, texts: Callable[[], pa.ChunkedArray], numbers: Array, options: SourceOptions) -> None:
    if not is_identifier(name) or name in (options.numbers or ()):
        return
    different = len(distinct(texts())[1])
    if different == len(numbers):
        raise FieldError("an identifier, which is different in every row", found="an identifier")
    if _ID.search(name) and (numbers == np.rint(numbers)).all():
        word = in_brackets([name])
        raise FieldError(
            f"an identifier of {different} different values",
            f"say what it is with --option 'categories={word}' or --option 'numbers={word}'",
        )


def _refuse_codes(name: str, parts: Iterable[pa.Array], options: SourceOptions) -> None:
    """Refuse digits of one length with zeros before them, such as postal codes: as numbers they would lose those."""
    if name in (options.numbers or ()):
        return
    padded, lengths = "", set()
    for part in parts:
        if not len(part):
            continue
        found = pc.min_max(pc.utf8_length(part)).as_py()
        lengths |= {found["min"], found["max"]}
        if len(lengths) > 1 or max(lengths) < CODE_LENGTH:
            return
        if not padded and pc.any(pc.match_substring_regex(part, CODE)).as_py():
            padded = pc.filter(part, pc.starts_with(part, "0"))[0].as_py()
    if padded:
        word = in_brackets([name])
        raise FieldError(
            f"{padded!r} and the like, codes that begin with 0",
            f"say what they are with --option 'categories={word}' or --option 'numbers={word}'",
        )


def _refuse_no_category(
    rows: Delimited, name: str, texts: pa.ChunkedArray, gone: Array, present: pa.ChunkedArray
) -> None:
    """Refuse a column of neither numbers nor dates that is no category either."""
    ways = other_notations(present)
    if ways:
        reason = f"{present[0].as_py()!r} and the like, numbers that are written in another way"
        as_words = f"--option 'categories={in_brackets([name])}'"
        raise FieldError(reason, f"read them with {ways}, or as categories with {as_words}")
    is_number: Array = pc.match_substring_regex(texts, number_pattern(Notation())).to_numpy()
    if 2 * is_number.sum() >= len(present) and is_number.any():
        odd = int((~is_number & ~gone).argmax())
        word = texts[odd].as_py()
        file, row = rows.where(odd)
        cure = f"correct it, or if it stands for a missing value, say --option 'missing_words={in_brackets([word])}'"
        raise FieldError(f"{word!r} in row {row} of {file} between numbers", cure)
    different = len(distinct(present)[1])
    if is_identifier(name) and different == len(texts):
        raise FieldError("an identifier, which is different in every row", found="an identifier")
    if different > _MOST_CATEGORIES or (different > _FEW and 2 * different > len(texts)):
        reason = f"{different} different texts in {len(texts)} rows"
        as_words = f"--option 'categories={in_brackets([name])}'"
        raise FieldError(reason, f"read it as categories all the same with {as_words}, or as texts with --format text")


def in_brackets(names: Sequence[Any]) -> str:
    """Return names as a list that can be pasted behind an option, within single quotes."""
    return f"[{', '.join(map(_as_yaml, names))}]"


def _as_yaml(name: object) -> str:
    text = str(name)
    if text.isidentifier() and text.lower() not in ("null", "true", "false", "yes", "no", "on", "off", "y", "n"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\x27")
    return f'"{escaped}"'


def refuse_fields(faults: dict[str, FieldError], place: str, gaps: str = "") -> ConfigError:
    """Return the one error that names all columns that cannot be read.

    Args:
        faults: by the column's name.
        place: the file.
        gaps: what is to be said of missing values.
    """
    leave_out = f"--option 'ignore={in_brackets([*faults])}'"
    if len(faults) == 1:
        ((name, fault),) = faults.items()
        cure = f"{fault.cure[:1].upper()}{fault.cure[1:]}, or leave it out" if fault.cure else "Leave it out"
        return ConfigError(
            f"{name} in {place} must be numbers or few categories, got {fault}. {cure} with {leave_out}.{gaps}"
        )
    found = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
    cures = "; ".join(dict.fromkeys(f"{name}: {fault.cure}" for name, fault in faults.items() if fault.cure))
    others = f" Or mend them one by one: {cures}." if cures else ""
    return ConfigError(
        f"{len(faults)} columns of {place} must be numbers or few categories, got {found}. Leave them out with "
        f"{leave_out}.{others}{gaps}"
    )
