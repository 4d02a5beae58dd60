"""Commands for single trainings: check, train, resume, runs, show, gc, drill."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.errors import ConfigError
from orchestrator.commands.app import (
    Address,
    Config,
    DryRun,
    Json,
    Overrides,
    StoreUrl,
    Yes,
    command,
    group,
    print_address,
    refuse_given,
    store_at,
)
from orchestrator.commands.ending import confirm
from orchestrator.reporting.run import arithmetic_lines, epoch_line, left_out_lines, result_lines, techniques_text

if TYPE_CHECKING:
    from cluster.s3.store import Store
    from orchestrator.runs.attempts import Receipt
    from orchestrator.runs.record import EpochRecord, RunRecord
    from orchestrator.train import RunResult
    from orchestrator.training.worker import Arithmetic

commands = group()


@command(commands, "orchestrator check my.yaml train.epochs=5")
def check(config: Config, overrides: Overrides = None, json: Json = False) -> None:
    """Validate an experiment without touching store or cluster, and print it with every default filled in."""
    import yaml

    from orchestrator.commands.terminal import emit, out
    from orchestrator.configfile import load_experiment

    experiment = load_experiment(config, overrides or [])
    values = experiment.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
    emit(experiment, as_json=json, show=lambda: out.print(text.rstrip(), markup=False))


@command(commands, "orchestrator train cifar10-cnn scaling.workers=2")
def train(
    config: Config,
    overrides: Overrides = None,
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
    run: Annotated[str | None, typer.Option(help="Name of the new run; default: made from data, model, time.")] = None,
) -> None:
    """Train one experiment on the cluster; what it will do is printed first, every epoch as it ends."""
    from orchestrator.commands.terminal import note
    from orchestrator.configfile import load_experiment

    experiment = load_experiment(config, overrides or [])
    print_address(address)
    if experiment.data.damaged == "skip":
        note("data.damaged=skip: all rows are read once before the first step, to find those that are damaged")
    from orchestrator.train import train as train_experiment

    opened = store_at(store)
    _follow_training(
        opened,
        lambda on_start, on_progress: train_experiment(
            experiment, store=opened, address=address, run=run, on_start=on_start, on_progress=on_progress
        ),
        as_json=json,
    )


@command(commands, "orchestrator resume cifar10-cnn-20261122-101500-a1b2")
def resume(
    run: str,
    workers: Annotated[int | None, typer.Option(help="Another number of workers than before.")] = None,
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
) -> None:
    """Continue a stopped run from its newest valid checkpoint; it ends with the weights of an unbroken one."""
    from orchestrator.train import resume as resume_run

    print_address(address)
    opened = store_at(store)
    _follow_training(
        opened,
        lambda on_start, on_progress: resume_run(
            run, store=opened, address=address, workers=workers, on_start=on_start, on_progress=on_progress
        ),
        as_json=json,
    )


@command(commands, "orchestrator runs")
def runs(
    json: Json = False,
    all: Annotated[bool, typer.Option("--all", help="The cells of sweeps too.")] = False,
    store: StoreUrl = None,
) -> None:
    """List the runs in the store, newest first."""
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, note_damaged
    from orchestrator.runs.record import find_runs

    found = find_runs(store_at(store))
    records = [r for r in found.found if all or r.sweep is None]
    rows = [(r.run, r.state, r.primary_metric, r.metrics.get(r.primary_metric), r.seconds, r.created) for r in records]
    columns = ("run", "state", "metric", "value", "seconds", "created")
    order = ("created", "seconds", "metric")
    emit(records, as_json=json, show=lambda: table(columns, rows, least=order))
    note_damaged(found.damaged)


@command(commands, "orchestrator show cifar10-cnn-20261122-101500-a1b2")
def show(run: str, json: Json = False, store: StoreUrl = None) -> None:
    """Show one run: its state, its metrics per epoch, what it used."""
    from orchestrator.commands.printing.runs import print_receipt
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, out
    from orchestrator.runs.record import read_history, read_run, read_status, with_live_state

    opened = store_at(store)
    record = with_live_state(opened, read_run(opened, run))
    history, spent = read_history(opened, run), _receipt(opened, record)

    def print_run() -> None:
        out.print(f"{record.run}: {record.state}, created {record.created}")
        out.print(f"dataset {record.dataset.name} {record.dataset.version} · code {record.code_version}")
        out.print(f"techniques {techniques_text(record)}", markup=False)
        if history:
            columns = ["epoch", *(name for name in history[-1] if name not in ("epoch", "learning_rate", "why"))]
            order = ("seconds", "waiting_share", "samples_per_s")
            table(columns, [[entry.get(name) for name in columns] for entry in history], least=order, ids=["epoch"])
        for line in (*result_lines(record), *left_out_lines(record)):
            out.print(line, markup=False)
        print_receipt(spent)
        if record.error:
            out.print(record.error, markup=False, style="red")

    status = read_status(opened, run)
    emit({"record": record, "history": history, "status": status, "receipt": spent}, as_json=json, show=print_run)


@command(commands, "orchestrator gc --dry-run", name="gc")
def gc_command(
    run: Annotated[str | None, typer.Argument(help="One run; default: all that nobody works on.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Remove checkpoints whose upload never ended: what a killed run leaves behind. Resuming does it too."""
    from orchestrator.commands.terminal import emit, out
    from orchestrator.runs.checkpoint import collect_garbage
    from orchestrator.runs.lease import Lease
    from orchestrator.runs.record import list_runs, read_run

    opened = store_at(store)
    names = [read_run(opened, run).run] if run else [r.run for r in list_runs(opened) if r.state != "running"]
    found = []
    for name in names:
        garbage = collect_garbage(opened, run=name, dry_run=True)
        if garbage and not dry_run:
            with Lease(opened, run=name):  # refuses a run that somebody works on
                garbage = collect_garbage(opened, run=name, dry_run=False)
        found += garbage
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {c.prefix} ({c.bytes / 2**20:.1f} MiB)" for c in found] or ["no unfinished upload was found"]
    rows = [{"prefix": c.prefix, "bytes": c.bytes} for c in found]
    emit({"removed": not dry_run, "checkpoints": rows}, as_json=json, show=lambda: out.print("\n".join(lines)))


@command(commands, "orchestrator drill digits-cnn --workers 2")
def drill(
    context: typer.Context,
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help="YAML file, or the name of a recipe.")] = None,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option(help="Another number of workers than the experiment's.")] = None,
    epochs: Annotated[int, typer.Option(help="To train, instead of the experiment's.")] = 2,
    kill: Annotated[Literal["worker"], typer.Option(help="What to kill.")] = "worker",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the checkpoints of a drill that passed.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the runs of all drills instead.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
) -> None:
    """Prove that recovery works here: train twice, kill a worker of the second, compare the bits of both.

    Only a process of the drill's own run is killed. Ends with 100 if the bits differ or no kill was seen.
    """
    if (config is None) == (not delete):
        raise ConfigError("drill must have either a CONFIG or --delete, got both or neither.")
    if config is None:
        refuse_given(context, "workers", "epochs", "kill", "keep", beside="--delete")
        _delete_drills(store_at(store), yes=yes, dry_run=dry_run, as_json=json)
        return
    from orchestrator.configfile import load_experiment

    experiment = load_experiment(config, overrides or [])
    from orchestrator import drill as drills
    from orchestrator.commands.printing.progress import training_progress
    from orchestrator.commands.printing.runs import print_drill
    from orchestrator.commands.terminal import emit, note, out

    plan = drills.plan_drill(experiment, kill=kill, workers=workers, epochs=epochs)
    if dry_run:
        text = f"would train {plan.experiment.model.type} twice for {epochs} epochs and kill one {kill}"
        emit(plan.experiment, as_json=json, show=lambda: out.print(text))
        return
    print_address(address)

    current: list[str] = []

    def on_start(record: "RunRecord", arithmetic: "Arithmetic") -> None:
        current.append(record.run)
        note(f"run {record.run}: {arithmetic.updates:,} updates")

    with training_progress(lambda: f"train {current[-1]}", lambda done: [f"epoch {done}/{epochs}"]) as on_progress:
        result = drills.drill(
            plan,
            store=store_at(store),
            address=address,
            keep_checkpoints=keep,
            on_start=on_start,
            on_progress=on_progress,
        )
    emit(result, as_json=json, show=lambda: print_drill(result))
    if not result.passed:
        raise typer.Exit(100)


def _delete_drills(store: "Store", *, yes: bool, dry_run: bool, as_json: bool) -> None:
    from orchestrator.commands.terminal import emit, out
    from orchestrator.drill import delete_drills, list_drills

    found = list_drills(store)
    if found and not dry_run:
        confirm(f"Delete {len(found)} runs of drills, with all that they left?", yes=yes)
        delete_drills(store, found)
    verb = "would delete" if dry_run else "deleted"
    lines = [f"{verb} {run}" for run in found] or ["no drill has left a run"]
    emit({"runs": found, "deleted": not dry_run}, as_json=as_json, show=lambda: out.print("\n".join(lines)))


def _receipt(store: "Store", record: "RunRecord") -> "Receipt":
    """What the restarts of a run have cost so far."""
    from orchestrator.runs.attempts import read_attempts, receipt

    return receipt(read_attempts(store, record.run), dollars_per_hour=record.experiment.scaling.dollars_per_hour)


def _follow_training(store: "Store", start: Callable[..., "RunResult"], *, as_json: bool) -> None:
    from orchestrator.commands.printing.progress import say, training_progress
    from orchestrator.commands.printing.runs import print_receipt
    from orchestrator.commands.terminal import emit, next_steps, note, out
    from orchestrator.runs.record import read_history

    current: list[RunRecord] = []
    told: list[EpochRecord] = []

    def on_start(record: "RunRecord", arithmetic: "Arithmetic") -> None:
        current.append(record)
        for line in arithmetic_lines(record, arithmetic):
            note(line)

    def subject() -> str:
        return f"train {current[0].run}"

    def news(history: "Sequence[EpochRecord]") -> list[str]:
        new = history[len(told) :]
        told.extend(new)
        return [epoch_line(epoch, current[0]) for epoch in new]

    with training_progress(subject, lambda _done: news(read_history(store, current[0].run))) as on_progress:
        result = start(on_start, on_progress)
    for line in news(result.history) if current else ():  # one that had finished before did not start
        say(subject(), line)
    spent = _receipt(store, result.record)

    def show() -> None:
        record = result.record
        first = f", first step after {record.first_step_s:.1f} s" if record.first_step_s else ""
        out.print(f"run {result.run} finished in {record.seconds:.1f} s{first}")
        for line in result_lines(record):
            out.print(line, style="bold")
        for line in left_out_lines(record)[:1]:  # the shards were named at the start
            out.print(line)
        print_receipt(spent)
        out.print(f"folder: {store.settings.url}/runs/{result.run}/")
        name = record.dataset.name
        next_steps(("models", "promote", result.run, name), ("deploy", name))

    found = {"run": result.run, "metrics": result.metrics, "history": result.history, "record": result.record}
    emit(found | {"receipt": spent}, as_json=as_json, show=show)
