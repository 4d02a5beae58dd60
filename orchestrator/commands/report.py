"""The command that shows what a sweep or a search found: report."""

import math
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import ConfigError
from cluster.process.typed import typed
from orchestrator.commands.app import Json, StoreUrl, command, group, store_at
from orchestrator.commands.sweep import print_search

commands = group()


@command(commands, "orchestrator report digits-cnn-20261122-101500-a1b2-sweep --html report.html")
def report(
    sweep: str,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML page, with charts.")
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option("--parquet", metavar="FILE", help="Write all trainings there, all effects to FILE-effects."),
    ] = None,
    json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Show what a sweep found so far: the verdict, every arm, what each choice does, and what it cost.

    Of a search: its trials. They have no effects to report, so there is no page and no Parquet of them.
    """
    from orchestrator.commands.printing.ledger import print_report
    from orchestrator.commands.terminal import emit, note
    from orchestrator.reporting.tables import report_data, write_parquet
    from orchestrator.searching.record import is_search, read_result
    from orchestrator.sweeping.record import SweepResult, ledger_of, read_cells, read_sweep

    opened = store_at(store)
    if is_search(opened, sweep):
        if html or parquet:
            raise ConfigError(
                f"report must be of a sweep for --html or --parquet, got the search {sweep}. "
                f"See its trials: `{typed('report', sweep, '--json')}`."
            )
        print_search(read_result(opened, sweep), as_json=json)
        return
    record = read_sweep(opened, sweep)
    cells = read_cells(opened, sweep)
    # how long all took is not known: it may still run, or have been resumed
    result = SweepResult(sweep, ledger_of(record, cells), cells, record, seconds=math.nan)
    written = list(write_parquet(result, parquet)) if parquet else []
    if html:
        from orchestrator.reporting.page import write_report

        written.append(write_report(result, html))
    for path in written:
        note(f"wrote {path}")
    emit(report_data(result), as_json=json, show=lambda: print_report(result))
