"""What a column of a table is: numbers, dates or categories, and how they are written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.preparing.rows import (
    BLANKS,
    MISSING_WORDS,
    SIGNS,
    CategoryColumn,
    DateColumn,
    Notation,
    NumberColumn,
    RowColumn,
    date_of,
    date_parts,
    example_of,
    mark_pattern,
    number_pattern,
    sign_pattern,
)
from orchestrator.data.columns import Array
from orchestrator.data.precision import merged
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
_EXACT = 2.0**53  # whole numbers up to here have a float each
_FIRST = 64  # values that are looked at before all are
_CODE_LENGTH = 3  # months and days have two digits
_ID_NAMES = ("id", "index", "uuid", "guid")
_ID = re.compile(r"(^|[_ -])(id|ID|Id)$|[a-z]I[dD]$|^(row[ ._]?names|[Uu]nnamed: [\d.]+)$")
"""user_id and userId, but neither paid nor COVID; and how R and pandas call the numbers of rows."""
_UNIT = re.compile(rf"""\d{BLANKS}?([^\W\d_][^\s\d.,;:]{{0,11}}|[°'"][^\W\d_]?)$""")  # 55 kg, 12 km/h, 21 °C, 5"
_NOTATIONS = tuple(
    Notation(decimal=decimal, thousands=thousands)
    for decimal, thousands in ((",", ""), (".", ","), (".", " "), (".", "'"), (",", "."), (",", " "))
)


class FieldError(Exception):
    """A column is neither numbers nor dates nor categories; as text, why. `cure`: what mends it, without its end."""

    def __init__(self, reason: str, cure: str = "", *, found: str = "") -> None:
        super().__init__(reason)
        self.cure = cure
        self.found = found or reason


@dataclass(frozen=True, eq=False)
class Field:
    """A column, as it was read."""

    name: str
    column: RowColumn
    texts: pa.ChunkedArray
    """Without the blanks around them."""
    is_missing: Array
    """[N] bool."""
    numbers: tuple[Array, ...] = ()
    """[N] of each number that the column becomes: float32, or float64 where 32 bits are not enough; NaN if missing."""
    notes: tuple[str, ...] = field(default=())

    @property
    def is_numeric(self) -> bool:
        """Whether the column is part of the vector."""
        return bool(self.numbers)


def read_field(rows: Delimited, name: str, options: SourceOptions) -> Field:
    """Return what a column is.

    Raises:
        FieldError: if it is neither numbers nor dates nor categories.
    """
    texts = rows.trimmed(name)
    if name not in (options.categories or ()):
        numbers = _plain_numbers(texts) if asked_notation(options).decimal == "." else None
        if numbers is not None:
            _refuse_codes(name, texts, options)
            _refuse_identifier(name, texts, numbers, options)
            return _of_numbers(name, NumberColumn(), texts, np.zeros(len(numbers), bool), numbers)
    gone = missing_in(texts, name, options)
    if gone.all():
        raise FieldError("nothing in any row", found="nothing in any row")
    present = pc.filter(texts, pa.array(~gone)) if gone.any() else texts
    if name in (options.categories or ()):
        return Field(name, CategoryColumn(feature=name), texts, gone)
    notation = notation_of(present, options)
    if notation is not None:
        _refuse_codes(name, present, options)
        numbers = _with_gaps(numbers_in(present, notation), gone)
        _refuse_identifier(name, present, numbers[~gone], options)
        notes = notation_notes(present, name, notation)
        return _of_numbers(name, NumberColumn(notation=notation), texts, gone, numbers, notes)
    if _all_match(present, _DATE) or (options.date_format and _parses(present, options.date_format)):
        return _of_dates(name, texts, gone, present, options)
    _refuse_no_category(rows, name, texts, gone, present)
    return Field(name, CategoryColumn(feature=name), texts, gone)


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


def numbers_in(texts: pa.ChunkedArray, notation: Notation) -> Array:
    """Return texts that are all numbers in a notation, [N] float64."""
    if notation.sign:
        texts = pc.replace_substring_regex(texts, sign_pattern(notation.sign), "")
    if notation.thousands:
        texts = pc.replace_substring_regex(texts, mark_pattern(notation.thousands), "")
    if notation.decimal != ".":
        texts = pc.replace_substring(texts, notation.decimal, ".")
    texts = pc.replace_substring(texts, "\u2212", "-")
    numbers: Array = pc.cast(texts, pa.float64()).to_numpy()
    return numbers


def _plain_numbers(texts: pa.ChunkedArray) -> Array | None:
    """Return a column of finite numbers without a gap, [N] float64; None if it is something else."""
    try:
        numbers: Array = pc.cast(texts, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return numbers if np.isfinite(numbers).all() else None


def notation_of(present: pa.ChunkedArray, options: SourceOptions) -> Notation | None:
    """Return how all of a column's values are written as numbers, if they are."""
    asked = asked_notation(options)
    sign = _sign_of(present)
    for notation in (asked, asked.model_copy(update={"sign": sign}), Notation(), Notation(sign=sign)):
        if _all_match(present, number_pattern(notation)):
            return notation
    return None


def notation_notes(present: pa.ChunkedArray, name: str, notation: Notation) -> tuple[str, ...]:
    """Say how the numbers of a column are written, unless anybody would read them so."""
    if notation.thousands != "." and _all_match(present, number_pattern(Notation())):
        return ()
    return (f"read the numbers of {name}, written like {example_of(notation)}",)


def asked_notation(options: SourceOptions) -> Notation:
    """Return how the person says that numbers are written; where points separate thousands, commas do decimals."""
    thousands = options.thousands or ""
    return Notation(decimal=options.decimal or ("," if thousands == "." else "."), thousands=thousands)


def other_notations(present: pa.ChunkedArray) -> str:
    """Return the options with which all of a column's values would be numbers; empty if none does it."""
    sign = _sign_of(present)
    ways = [
        _options(notation)
        for notation in _NOTATIONS
        for signed in (notation, notation.model_copy(update={"sign": sign}))
        if _all_match(present, number_pattern(signed))
    ]
    if "--option 'decimal=,'" in ways:  # which alone is enough
        ways = [way for way in ways if not way.startswith("--option 'decimal=,' ")]
    return " or ".join(dict.fromkeys(ways))


def _sign_of(present: pa.ChunkedArray) -> str:
    """Return what may stand with every number, as it stands with the first; a unit only where it is of many numbers."""
    first = present[0].as_py()
    unit = _UNIT.search(first)
    if unit is None or any(sign in first for sign in SIGNS):
        return next((sign for sign in SIGNS if sign in first), "")
    return unit[1] if len(distinct(present)[1]) > _FEW else ""


def _of_numbers(
    name: str,
    column: NumberColumn,
    texts: pa.ChunkedArray,
    gone: Array,
    numbers: Array,
    notes: tuple[str, ...] = (),
) -> Field:
    if np.nanmax(np.abs(numbers)) > LARGEST:
        row = int(np.nanargmax(np.abs(numbers)))
        raise FieldError(f"{texts[row].as_py()!r}, which does not fit 32 bits", found="numbers beyond 32 bits")
    if np.nanmax(np.abs(numbers)) > _EXACT:
        present = pc.filter(texts, pa.array(~gone))
        if len(np.unique(numbers[~gone])) < len(distinct(present)[1]):
            word = in_brackets([name])
            reason = f"{present[0].as_py()!r} and the like, of which 64 bits cannot tell all apart"
            raise FieldError(reason, f"make them categories with --option 'categories={word}'")
    return Field(name, column, texts, gone, (_stored(numbers),), notes)


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


def _of_dates(
    name: str, texts: pa.ChunkedArray, gone: Array, present: pa.ChunkedArray, options: SourceOptions
) -> Field:
    if not options.dates:
        raise FieldError("dates", "make numbers of dates with --option 'dates=[year, month, day, weekday]'")
    codes, words = distinct(present)
    format = _format_of(words, options)
    parts = [date_parts(date, options.dates) for word in words if (date := date_of(word, format))]
    columns = np.array(parts, np.float64)[codes].T
    column = DateColumn(format=format, parts=options.dates)
    note = f"made {', '.join(options.dates)} of the dates in {name}, read as {format or 'ISO 8601'}"
    return Field(name, column, texts, gone, tuple(_stored(_with_gaps(c, gone)) for c in columns), (note,))


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


def _is_identifier(name: str) -> bool:
    return name.lower() in _ID_NAMES or _ID.search(name) is not None


def _refuse_identifier(name: str, texts: pa.ChunkedArray, numbers: Array, options: SourceOptions) -> None:
    if not _is_identifier(name) or name in (options.numbers or ()):
        return
    different = len(distinct(texts)[1])
    if different == len(texts):
        raise FieldError("an identifier, which is different in every row", found="an identifier")
    if _ID.search(name) and (numbers == np.rint(numbers)).all():
        word = in_brackets([name])
        raise FieldError(
            f"an identifier of {different} different values",
            f"say what it is with --option 'categories={word}' or --option 'numbers={word}'",
        )


def _refuse_codes(name: str, texts: pa.ChunkedArray, options: SourceOptions) -> None:
    """Refuse digits of one length with zeros before them, such as postal codes: as numbers they would lose those."""
    if name in (options.numbers or ()):
        return
    padded = pc.filter(texts, pc.starts_with(texts, "0"))
    if not len(padded) or not pc.any(pc.match_substring_regex(padded, r"^0\d+$")).as_py():
        return
    lengths = pc.min_max(pc.utf8_length(texts)).as_py()
    if lengths["min"] == lengths["max"] >= _CODE_LENGTH:
        word = in_brackets([name])
        raise FieldError(
            f"{padded[0].as_py()!r} and the like, codes that begin with 0",
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
    if _is_identifier(name) and different == len(texts):
        raise FieldError("an identifier, which is different in every row", found="an identifier")
    if different > _MOST_CATEGORIES or (different > _FEW and 2 * different > len(texts)):
        reason = f"{different} different texts in {len(texts)} rows"
        as_words = f"--option 'categories={in_brackets([name])}'"
        raise FieldError(reason, f"read it as categories all the same with {as_words}, or as texts with --format text")


def _options(notation: Notation) -> str:
    thousands = {"": "", " ": "--option thousands=space", "'": '--option "thousands=\'"'}
    words = ["--option 'decimal=,'" if notation.decimal == "," else ""]
    words.append(thousands.get(notation.thousands, f"--option 'thousands={notation.thousands}'"))
    return " ".join(filter(None, words))


def _all_match(texts: pa.ChunkedArray, pattern: str) -> bool:
    if not pc.all(pc.match_substring_regex(texts[:_FIRST], pattern)).as_py():
        return False
    return bool(pc.all(pc.match_substring_regex(texts, pattern)).as_py())


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
