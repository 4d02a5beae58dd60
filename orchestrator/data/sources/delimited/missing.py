"""What happens to the missing values of a table: refused with one message, dropped with their rows, or filled."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.preparing.rows import CategoryColumn, DateColumn, NumberColumn
from orchestrator.data.columns import Array
from orchestrator.data.order import Ints
from orchestrator.data.sources.delimited.fields import Field, in_brackets, missing_in, policy_of
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.rows import Delimited

MISSING_CATEGORY = "(missing)"


def check_policies(names: Sequence[str], options: SourceOptions, place: str) -> None:
    """Refuse options for columns that are not there."""
    for option in ("missing", "categories", "numbers"):
        chosen = getattr(options, option)
        unknown = [name for name in chosen or () if name not in (*names, "*")] if not isinstance(chosen, str) else []
        if unknown:
            raise ConfigError(
                f"{option} must name columns of {place}, got {unknown[0]!r}; there are {', '.join(names)}."
            )


def gaps_of(rows: Delimited, fields: Sequence[Field], target: str, options: SourceOptions) -> str:
    """Return what is to be said of the missing values that nothing was said about; empty if there are none."""
    gaps = {field.name: field.is_missing for field in fields if policy_of(field.name, options) in ("refuse", "keep")}
    if policy_of(target, options) != "drop":
        gaps[target] = missing_in(rows.trimmed(target), target, options)
    gaps = {name: gone for name, gone in gaps.items() if gone.any()}
    if not gaps:
        return ""
    name, gone = next(iter(gaps.items()))
    file, row = rows.where(int(gone.argmax()))
    listed = ", ".join(f"{name} in {int(gone.sum()):,}" for name, gone in gaps.items())
    cures = ["fill them with --option missing=mean (or median, or category: a value of its own)"]
    if [*gaps] == [target]:
        cures = []
    cures.append(f"leave their rows out with --option {_drop(target, gaps)}")
    one = next((name for name in gaps if name != target), None)
    if one:
        numeric = any(field.is_numeric for field in fields if field.name == one)
        word = in_brackets([one])[1:-1]
        cures.append(f"say it of one column, as --option 'missing={{{word}: {'median' if numeric else 'category'}}}'")
        if not numeric and not pc.all(pc.equal(pc.filter(rows.trimmed(one), pa.array(gaps[one])), "")).as_py():
            cures.append(f"keep its words as categories with --option 'missing={{{word}: keep}}'")
    return (
        f"every field of {rows.place} must have a value, got none in {len(rows):,} rows of these columns: {listed}; "
        f"the first is {name} in row {row}{f' of {file}' if len(rows.files) > 1 else ''}. {_sentence(cures)}."
    )


def _drop(target: str, gaps: Mapping[str, Array]) -> str:
    if target not in gaps or len(gaps) == 1:
        return "missing=drop" if target not in gaps else f"'missing={{{in_brackets([target])[1:-1]}: drop}}'"
    return f"'missing={{{in_brackets([target])[1:-1]}: drop, \"*\": mean}}', as {target} cannot be filled"


def _sentence(cures: Sequence[str]) -> str:
    text = cures[0] if len(cures) == 1 else f"{', '.join(cures[:-1])}, or {cures[-1]}"
    return text[:1].upper() + text[1:]


def kept_rows(rows: Delimited, fields: Sequence[Field], target: str, options: SourceOptions) -> tuple[Ints, str]:
    """Return the rows that stay, and a note about those that do not."""
    gone = {field.name: field.is_missing for field in fields if policy_of(field.name, options) == "drop"}
    if policy_of(target, options) == "drop":
        gone[target] = missing_in(rows.trimmed(target), target, options)
    gone = {name: found for name, found in gone.items() if found.any()}
    if not gone:
        return np.arange(len(rows)), ""
    kept = np.flatnonzero(~np.any([*gone.values()], axis=0))
    if not len(kept):
        raise ConfigError(f"missing=drop must leave rows of {rows.place}, got none. Fill or ignore a column.")
    listed = ", ".join(f"{name} in {int(found.sum()):,}" for name, found in gone.items())
    return kept, f"left out {len(rows) - len(kept):,} of {len(rows):,} rows, with no value of {listed}"


def with_rules(field: Field, options: SourceOptions) -> Field:
    """Return a column with what becomes of its missing values, but for the numbers that fill them."""
    policy = policy_of(field.name, options)
    column = field.column
    if isinstance(column, CategoryColumn):
        if policy in ("mean", "median") and isinstance(options.missing, dict) and field.name in options.missing:
            raise ConfigError(
                f"missing of {field.name} must be drop or category, as it holds categories, got {policy}."
            )
        word = MISSING_CATEGORY if policy in ("mean", "median", "category") else None
        if word and field.is_missing.any():
            note = f"made {int(field.is_missing.sum()):,} missing values of {field.name} a category, {word}"
            field = replace(field, notes=(*field.notes, note))
        return replace(field, column=column.model_copy(update={"missing": word, "keeps_words": policy == "keep"}))
    fills = policy in ("mean", "median", "category")
    if fills and field.is_missing.any() and (options.indicators or policy == "category"):
        return replace(field, column=column.model_copy(update={"indicator": True}))
    return field


def filled(field: Field, train: Ints, options: SourceOptions) -> Field:
    """Return a column of numbers without gaps: those are filled with what training says.

    Raises:
        ConfigError: if training has no value at all.
    """
    policy = policy_of(field.name, options)
    column, gone = field.column, field.is_missing
    if policy not in ("mean", "median", "category") or not isinstance(column, NumberColumn | DateColumn):
        return field
    if gone[train].all():
        raise ConfigError(
            f"{field.name} must have a value in some row of training to be filled, got none. Leave it out with "
            f"--option 'ignore={in_brackets([field.name])}'."
        )
    middle = np.nanmedian if policy == "median" else np.nanmean
    fills = tuple(float(middle(numbers[train].astype(np.float64))) for numbers in field.numbers)
    numbers = [
        np.where(gone, fill, found).astype(found.dtype) for fill, found in zip(fills, field.numbers, strict=True)
    ]
    if column.indicator:
        numbers.append(gone.astype(np.float32))
    update = {"fill": fills[0]} if isinstance(column, NumberColumn) else {"fills": fills}
    notes = field.notes
    if gone.any():
        shown = ", ".join(f"{fill:.6g}" for fill in fills)
        what = "median" if policy == "median" else "mean"
        notes = (
            *notes,
            f"filled {int(gone.sum()):,} missing values of {field.name} with the {what} of training, {shown}",
        )
    return replace(field, column=column.model_copy(update=update), numbers=tuple(numbers), notes=notes)
