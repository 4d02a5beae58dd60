"""Reads columns of plain numbers, many at a time: one by one, fifty thousand would take half a minute."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.preparing.rows import NumberColumn
from orchestrator.data.columns import Array
from orchestrator.data.precision import DECIMALS, LEVELS
from orchestrator.data.sources.delimited.fields import CODE, CODE_LENGTH, EXACT, Field, is_identifier
from orchestrator.data.sources.delimited.notations import asked_notation
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.rows import Delimited

_VALUES = 2**21  # that are worked on at a time
_FEW = 8  # columns among which it is not worth while to look for those that are plain


def plain_fields(rows: Delimited, names: Sequence[str], options: SourceOptions) -> dict[str, Field]:
    """Return the columns that are numbers in every row, as `read_field` reads them.

    Those that need a second look are not among them: numbers that 32 bits may not tell apart, identifiers, codes that
    begin with 0. A large table is not looked at, whose columns do not fit in memory side by side.
    """
    if rows.shelf is not None or asked_notation(options).decimal != ".":
        return {}
    chosen = [name for name in names if name not in (options.categories or ()) and not is_identifier(name)]
    step = max(_FEW, _VALUES // len(rows))
    table = rows.columns.table().select(chosen)
    found: dict[str, Field] = {}
    for start in range(0, len(chosen), step):
        found |= _plain(table.select(chosen[start : start + step]).combine_chunks(), options)
    return found


def _plain(table: pa.Table, options: SourceOptions) -> dict[str, Field]:
    texts = pa.chunked_array([column.chunk(0) for column in table.columns])
    shape = (table.num_columns, table.num_rows)
    try:
        numbers_DN = pc.cast(texts, pa.float64()).to_numpy().reshape(shape)
    except pa.ArrowInvalid:
        if table.num_columns <= _FEW:
            return {}
        half = table.num_columns // 2
        names = table.column_names
        return _plain(table.select(names[:half]), options) | _plain(table.select(names[half:]), options)
    with np.errstate(over="ignore"):
        stored_DN = numbers_DN.astype(np.float32)
    largest_D = np.abs(numbers_DN).max(1)  # NaN where a value is
    fits_D = (largest_D <= EXACT) & ((stored_DN == numbers_DN).all(1) | _have_few_digits(numbers_DN, largest_D))
    lengths_DN = pc.utf8_length(texts).to_numpy().reshape(shape)
    even_D = fits_D & (lengths_DN.min(1) == lengths_DN.max(1)) & (lengths_DN[:, 0] >= CODE_LENGTH)
    fits_D[np.flatnonzero(even_D)] = ~_have_codes(table, even_D, options)
    gone = np.broadcast_to(np.False_, table.num_rows)
    column = NumberColumn()
    names = table.column_names
    return {
        names[place]: Field(names[place], column, gone, numbers=(stored_DN[place] + np.float32(0),))
        for place in np.flatnonzero(fits_D).tolist()
    }


def _have_few_digits(numbers_DN: Array, largest_D: Array) -> Array:
    """Return which rows are decimal fractions that 32 bits tell apart, [D] bool; see `merged`."""
    fits_D = np.zeros(len(numbers_DN), bool)
    open_D = np.arange(len(numbers_DN))
    for factor in DECIMALS:
        some = numbers_DN[open_D]
        with np.errstate(over="ignore", invalid="ignore"):
            is_decimal = (np.rint(some * factor) / factor == some).all(1)
        fits_D[open_D[is_decimal]] = largest_D[open_D[is_decimal]] * factor < LEVELS
        open_D = open_D[~is_decimal]
    return fits_D


def _have_codes(table: pa.Table, chosen_D: Array, options: SourceOptions) -> Array:
    """Return which of the chosen columns hold digits with a zero before them, and were not said to be numbers."""
    chosen = table.select(np.flatnonzero(chosen_D).tolist())
    if not chosen.num_columns:
        return np.zeros(0, bool)
    texts = pa.chunked_array([column.chunk(0) for column in chosen.columns])
    found: Array = pc.match_substring_regex(texts, CODE).to_numpy().reshape(chosen.num_columns, -1).any(1)
    return found & ~np.isin(chosen.column_names, [*(options.numbers or ())])
