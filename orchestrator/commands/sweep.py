"""The command that compares or searches: sweep."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import ConfigError, OrchestratorError
from orchestrator.commands.app import (
    Address,
    DryRun,
    Json,
    Overrides,
    StoreUrl,
    command,
    group,
    print_address,
    store_at,
)

if TYPE_CHECKING:
    from cluster.s3.store import Store
    from orchestrator.searching.record import SearchRecord, SearchResult
    from orchestrator.sweeping.record import SweepRecord, SweepResult

commands = group()


@command(commands, "orchestrator sweep digits-techniques sweep.seeds=3")
def sweep(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="YAML file or recipe with a sweep or a search group.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="SWEEP", help="Finish a stopped one.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the new sweep.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
) -> None:
    """Train every combination of `sweep.vary` with every seed, and say which choice won, or that none did.

    With a search group instead: look for the best model among settings from `search.space`.
    """
    from orchestrator.configfile import load_experiment

    if (config is None) == (resume is None):
        raise ConfigError("sweep must have either a CONFIG or --resume SWEEP, got both or neither.")
    experiment = load_experiment(config, overrides or []) if config else None
    searches = _is_search(experiment) if experiment else _is_search_name(resume, store)
    if experiment and dry_run:
        (_print_space if searches else _print_plan)(experiment, store=store, address=address, as_json=json)
        return
    print_address(address)
    run = _run_search if searches else _run_sweep
    run(experiment, resume, name=name, store=store_at(store), address=address, as_json=json)


def _is_search(experiment: Any) -> bool:
    if experiment.sweep is not None and experiment.search is not None:
        raise ConfigError("sweep and search must not both be given, got both. Leave one out, such as search=null.")
    if experiment.sweep is None and experiment.search is None:
        raise ConfigError(
            "sweep must be given, got nothing. Add sweep: {vary: …} to compare choices, or search: {space: …} to find "
            "the best model."
        )
    return experiment.search is not None


def _is_search_name(name: str | None, store: str | None) -> bool:
    from orchestrator.searching.record import is_search

    assert name is not None
    return is_search(store_at(store), name)


def _run_sweep(
    experiment: Any, resume: str | None, *, name: str | None, store: "Store", address: str | None, as_json: bool
) -> None:
    from orchestrator import sweep as orchestrator_sweep
    from orchestrator.commands.printing.progress import counting_progress
    from orchestrator.commands.terminal import note
    from orchestrator.sweeping import plan as sweeping_plan
    from orchestrator.sweeping import record as sweeping_record

    fresh, again = orchestrator_sweep.sweep, orchestrator_sweep.resume_sweep
    start: Callable[..., SweepResult] = (
        partial(fresh, experiment, name=name) if experiment else partial(again, resume or "")
    )
    current: list[str] = []

    def on_start(record: "SweepRecord") -> None:
        current.append(record.sweep)
        note(f"sweep {record.sweep}: {len(record.arms)} arms × {len(record.seeds)} seeds")
        for line in [*not_applicable_lines(record.arms), *sweeping_plan.plan_lines(record)]:
            note(line)

    with counting_progress(lambda: f"sweep {current[0]}", "cells") as bar:

        def on_progress(progress: sweeping_record.SweepProgress) -> None:
            failed = f"{progress.failed} failed" if progress.failed else ""
            bar(progress.done, progress.total, failed)

        result = start(store=store, address=address, on_start=on_start, on_progress=on_progress)
    _print_sweep(result, as_json=as_json)


def _run_search(
    experiment: Any, resume: str | None, *, name: str | None, store: "Store", address: str | None, as_json: bool
) -> None:
    from orchestrator import search as orchestrator_search
    from orchestrator.commands.printing.progress import counting_progress
    from orchestrator.commands.terminal import note
    from orchestrator.searching import plan as searching_plan
    from orchestrator.searching import record as searching_record

    fresh, again = orchestrator_search.search, orchestrator_search.resume_search
    start: Callable[..., SearchResult] = (
        partial(fresh, experiment, name=name) if experiment else partial(again, resume or "")
    )
    current: list[str] = []

    def on_start(record: "SearchRecord") -> None:
        current.append(record.search)
        settings = record.experiment.search
        assert settings is not None
        note(f"search {record.search}: {settings.trials} trials by {settings.method}")
        for line in searching_plan.plan_lines(record):
            note(line)

    with counting_progress(lambda: f"search {current[0]}", "trials") as bar:

        def on_progress(progress: searching_record.SearchProgress) -> None:
            bar(progress.done, progress.total, _search_detail(progress))

        result = start(store=store, address=address, on_start=on_start, on_progress=on_progress)
    print_search(result, as_json=as_json)


def _search_detail(progress: Any) -> str:
    from orchestrator.reporting.words import number

    parts = [f"{count} {state}" for state, count in progress.counts.items() if count and state != "finished"]
    if progress.best:
        parts.append(f"best {number(progress.best.value)}")
    return ", ".join(parts)


def not_applicable_lines(arms: Any) -> list[str]:
    """Which varied settings some arms do not have."""
    lines = {
        f"{name} is not applicable to model.type {arm.experiment.model.type}: not varied there"
        for arm in arms
        for name in arm.not_applicable
    }
    return sorted(lines)


def _print_plan(experiment: Any, *, store: str | None, address: str | None, as_json: bool) -> None:
    from orchestrator import sweep as orchestrator_sweep
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, note, out
    from orchestrator.sweeping import plan as sweeping_plan

    design, arms = sweeping_plan.plan_sweep(experiment)
    try:
        record = orchestrator_sweep.predict_sweep(experiment, store=store_at(store), address=address)
    except OrchestratorError as error:
        if experiment.sweep.budget:
            raise
        note(f"time and cost are not predicted: {error}")
        record = None
    seeds = len(record.seeds) if record else experiment.sweep.seeds
    lines = sweeping_plan.plan_lines(record) if record else [*design.generators, *design.aliases, *design.notes]

    def show() -> None:
        names = list(experiment.sweep.vary)
        table(("arm", *names), [(arm.name, *(arm.settings.get(n, "–") for n in names)) for arm in arms], ids=names)
        out.print(f"{len(arms)} arms × {seeds} seeds = {len(arms) * seeds} trainings")
        for line in [*not_applicable_lines(arms), *lines]:
            out.print(line)

    prediction = record.prediction if record else None
    emit({"arms": arms, "seeds": seeds, "prediction": prediction}, as_json=as_json, show=show)


def _print_space(experiment: Any, *, store: str | None, address: str | None, as_json: bool) -> None:  # noqa: ARG001
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, out
    from orchestrator.searching.plan import space_rows
    from orchestrator.searching.space import probes

    probes(experiment)
    rows, settings = space_rows(experiment), experiment.search

    def show() -> None:
        table(("setting", "values"), rows, prose=["values"])
        epochs = experiment.train.epochs
        out.print(f"{settings.trials} trials by {settings.method}, of {epochs} epochs each unless stopped early")

    emit({"search": settings, "epochs": experiment.train.epochs}, as_json=as_json, show=show)


SHOWN_TRIALS = 10


def print_search(result: "SearchResult", *, as_json: bool) -> None:
    """Print the trials of a search, the best first, and what to do with the best."""
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, out
    from orchestrator.reporting.words import metrics_line
    from orchestrator.searching.record import counts_of

    record, best = result.record, result.best
    settings = record.experiment.search
    assert settings is not None
    counts = counts_of(result.trials)

    def show() -> None:
        columns = ("run", record.metric, *settings.space, "epochs", "seconds", "state")
        rows = [
            (t.run, t.value, *(t.values[name] for name in settings.space), t.epochs, t.seconds, t.state)
            for t in result.trials[:SHOWN_TRIALS]
        ]
        least = ("seconds", "epochs", *reversed(list(settings.space)), "state")
        table(columns, rows, least=least, ids=list(settings.space))
        ended = ", ".join(f"{count} {state}" for state, count in counts.items())
        took = "" if math.isnan(result.seconds) else f" in {result.seconds:.1f} s"
        out.print(f"{sum(counts.values())} of {settings.trials} trials{took}: {ended}")
        for trial in result.trials:
            if trial.error:
                out.print(f"{trial.run} failed: {trial.error.strip().splitlines()[-1]}", markup=False)
        out.print(f"{record.metric} is of the {record.judged_on} split; the settings were chosen by it")
        if best and result.metrics:
            out.print(f"best: {best.run}, on the test split {metrics_line(result.metrics)}", style="bold")
        _search_steps(result)

    shown = {"search": result.search, "record": record, "best": best and best.run, "metrics": result.metrics}
    emit(shown | {"trials": result.trials, "seconds": result.seconds}, as_json=as_json, show=show)


def _search_steps(result: "SearchResult") -> None:
    from orchestrator.commands.terminal import next_steps

    name, best = result.record.experiment.data.name, result.best
    if result.record.state == "running":
        next_steps(("sweep", "--resume", result.search))
    elif best:
        next_steps(("show", best.run), ("models", "promote", best.run, name), ("deploy", name))


def _print_sweep(result: "SweepResult", *, as_json: bool) -> None:
    from orchestrator.commands.printing.ledger import print_report
    from orchestrator.commands.terminal import emit, next_steps, out

    def show() -> None:
        print_report(result)
        out.print(f"{len(result.cells)} trainings in {result.seconds:.1f} s")
        name = result.record.experiment.data.name
        steps: list[tuple[str, ...]] = [("report", result.sweep, "--html", "report.html")]
        if result.ledger.best_run:
            steps += [("models", "promote", result.ledger.best_run, name), ("deploy", name)]
        next_steps(*steps)

    emit(
        {"sweep": result.sweep, "ledger": result.ledger, "cells": result.cells, "seconds": result.seconds},
        as_json=as_json,
        show=show,
    )
