"""A sweep's report as data: one JSON object, and Parquet files of trainings and effects."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import ConfigError
from cluster.machine.disk import naming_disk
from orchestrator.evidence.design import level_name
from orchestrator.evidence.record import Cell, Ledger
from orchestrator.reporting.sentences import findings, outcome_of, verdict

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.sweeping.record import SweepResult


def report_data(result: "SweepResult") -> dict[str, Any]:
    """All of it, for `display.emit`: names and units as in the ledger."""
    return {
        "sweep": result.sweep,
        "verdict": verdict(result.ledger),
        "findings": list(findings(result.ledger)),
        "ledger": result.ledger,
        "seeds": result.record.seeds,
        "experiment": result.record.experiment,
        "outcome": outcome_of(result),
        "cells": result.cells,
        "seconds": result.seconds,
    }


def write_parquet(result: "SweepResult", path: Path) -> tuple[Path, Path]:
    """Write a row for each training to ``path``, and one for each effect to a file `...-effects` beside it.

    Returns:
        Both paths.

    Raises:
        ConfigError: if a file cannot be written.
    """
    import pyarrow.parquet as pq

    effects = path.with_name(f"{path.stem}-effects{path.suffix}")
    try:
        with naming_disk(path):
            pq.write_table(cell_table(result.ledger, result.cells), path)
            pq.write_table(effect_table(result.ledger), effects)
    except OSError as error:
        raise ConfigError(f"--parquet must be a file that can be written, got {path}: {error}.") from error
    return path, effects


def cell_table(ledger: Ledger, cells: Sequence[Cell]) -> "pa.Table":
    """A row for each training: arm, seed, state, every setting by its name, and every metric as `metrics.NAME`."""
    import pyarrow as pa

    settings = {row.arm: row.settings for row in ledger.arms}
    metrics = dict.fromkeys(name for cell in cells for name in cell.metrics)
    chosen = {name: [settings.get(c.arm, {}).get(name) for c in cells] for name in _settings_of(ledger)}
    return pa.table(
        {
            "arm": pa.array([c.arm for c in cells], pa.string()),
            "seed": pa.array([c.seed for c in cells], pa.int64()),
            "run": pa.array([c.run for c in cells], pa.string()),
            "state": pa.array([c.state for c in cells], pa.string()),
            "seconds": pa.array([c.seconds for c in cells], pa.float64()),
            "started": pa.array([c.started for c in cells], pa.float64()),
            "lane": pa.array([c.lane for c in cells], pa.int64()),
            "learning_rate": pa.array([c.learning_rate for c in cells], pa.float64()),
            "error": pa.array([c.error for c in cells], pa.string()),
            **{name: _setting_column(values) for name, values in chosen.items()},
            **{f"metrics.{name}": pa.array([c.metrics.get(name) for c in cells], pa.float64()) for name in metrics},
        }
    )


def effect_table(ledger: Ledger) -> "pa.Table":
    """A row for each effect on each response, with the fields of `Effect`."""
    import pyarrow as pa

    rows = [(response, effect) for response in ledger.responses for effect in response.effects]
    texts = {
        "response": [r.name for r, _ in rows],
        "unit": [r.unit for r, _ in rows],
        "factors": [" × ".join(e.factors) for _, e in rows],
        "effect": [e.name for _, e in rows],
        "better": [e.better for _, e in rows],
    }
    fields = ("estimate", "low", "high", "simultaneous_low", "simultaneous_high", "p", "adjusted_p")
    return pa.table(
        {name: pa.array(values, pa.string()) for name, values in texts.items()}
        | {name: pa.array([getattr(e, name) for _, e in rows], pa.float64()) for name in fields}
        | {"clear": pa.array([e.clear for _, e in rows], pa.bool_())}
    )


def _settings_of(ledger: Ledger) -> list[str]:
    return list(dict.fromkeys(name for row in ledger.arms for name in row.settings))


def _setting_column(values: Sequence[Any]) -> "pa.Array":
    """Return a setting's column: in the levels' own type where all are of one type, else their names."""
    import pyarrow as pa

    known = {type(value) for value in values if value is not None}
    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    if known == {int, float}:
        known = {float}
    if len(known) == 1 and (found := next(iter(known))) in types:
        return pa.array(values, types[found])
    return pa.array([None if value is None else level_name(value) for value in values], pa.string())
