"""How the numbers of a column are written: with which decimal point, thousands and signs."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from models.preparing.rows import BLANKS, SIGNS, Notation, example_of, mark_pattern, number_pattern, sign_pattern
from orchestrator.data.columns import Array
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.rows import distinct

_FEW = 20  # different values: so many with a unit are categories
_UNIT = re.compile(rf"""\d{BLANKS}?([^\W\d_][^\s\d.,;:]{{0,11}}|[°'"][^\W\d_]?)$""")  # 55 kg, 12 km/h, 21 °C, 5"

_NOTATIONS = tuple(
    Notation(decimal=decimal, thousands=thousands)
    for decimal, thousands in ((",", ""), (".", ","), (".", " "), (".", "'"), (",", "."), (",", " "))
)
_FIRST = 64  # values that are looked at before all are


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


def notation_of(present: pa.ChunkedArray, options: SourceOptions) -> Notation | None:
    """Return how all of a column's values are written as numbers, if they are."""
    asked = asked_notation(options)
    sign = _sign_of(present)
    for notation in (asked, asked.model_copy(update={"sign": sign}), Notation(), Notation(sign=sign)):
        if all_match(present, number_pattern(notation)):
            return notation
    return None


def notation_notes(present: pa.ChunkedArray, name: str, notation: Notation) -> tuple[str, ...]:
    """Say how the numbers of a column are written, unless anybody would read them so."""
    if notation.thousands != "." and all_match(present, number_pattern(Notation())):
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
        if all_match(present, number_pattern(signed))
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


def all_match(texts: pa.ChunkedArray, pattern: str) -> bool:
    """Return whether all texts match a regular expression."""
    if not pc.all(pc.match_substring_regex(texts[:_FIRST], pattern)).as_py():
        return False
    return bool(pc.all(pc.match_substring_regex(texts, pattern)).as_py())


def _options(notation: Notation) -> str:
    thousands = {"": "", " ": "--option thousands=space", "'": '--option "thousands=\'"'}
    words = ["--option 'decimal=,'" if notation.decimal == "," else ""]
    words.append(thousands.get(notation.thousands, f"--option 'thousands={notation.thousands}'"))
    return " ".join(filter(None, words))
