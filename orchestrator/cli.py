"""The `orchestrator` command. Every command is a thin view of a function of the same name in another module."""

import gc
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer

from cluster.errors import ConfigError, OrchestratorError

if TYPE_CHECKING:
    from cluster.state import LocalState
    from cluster.storage import Store
    from orchestrator.attempts import Receipt
    from orchestrator.runs import EpochRecord, RunRecord
    from orchestrator.search import SearchRecord, SearchResult
    from orchestrator.sweep import SweepRecord, SweepResult
    from orchestrator.train import Arithmetic, RunResult
    from serving.deploy import Endpoint
    from serving.deployed import Deployed

app = typer.Typer(
    name="orchestrator",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train, sweep and serve small networks on a Ray cluster, from one YAML file.\n\n"
    "Begin with `orchestrator demo`, or `orchestrator up` and `orchestrator recipes`.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Datasets in the store.", rich_markup_mode="markdown")
models_app = typer.Typer(no_args_is_help=True, help="Trained models in the registry.", rich_markup_mode="markdown")
recipes_app = typer.Typer(help="Experiments that ship with the package.", rich_markup_mode="markdown")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(recipes_app, name="recipes")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store", envvar="ORCHESTRATOR_STORE", help="s3://BUCKET[/PREFIX]; default: the local one."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="Ray cluster: HOST:PORT, ray://…, http://… or auto. Default: RAY_ADDRESS, or `up`'s."
    ),
]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, or the name of a recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the file's.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


Command = TypeVar("Command", bound=Callable[..., Any])


def main() -> None:
    """Run the command line; errors become one clear message and an exit code."""
    from cluster.head_watch import told_by
    from orchestrator.display import LogLines, print_traceback, stdout_kept_for_json

    sys.excepthook = print_traceback
    logging.basicConfig(handlers=[LogLines()])
    as_json = "--json" in sys.argv[1:] and "--help" not in sys.argv[1:]
    tell = partial(_tell, as_json=as_json)
    try:
        with stdout_kept_for_json() if as_json else nullcontext(), told_by(tell):
            app(standalone_mode=True)
    except OrchestratorError as error:
        tell(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _print_error("interrupted")
        sys.exit(130)
    except Exception as error:
        _fail_unexpectedly(error, as_json=as_json)
    finally:
        gc.freeze()  # or the interpreter looks through a million objects of Ray's at its end, for 0.6 s


def _tell(error: OrchestratorError, *, as_json: bool) -> None:
    from cluster.urls import masked
    from orchestrator.display import emit, stop_bars

    stop_bars()  # this may be another thread than that which shows them
    message = masked(str(error))
    emit(
        {"error": type(error).__name__, "message": message, "exit_code": error.exit_code},
        as_json=as_json,
        show=lambda: _print_error(message),
    )


def _fail_unexpectedly(error: Exception, *, as_json: bool) -> NoReturn:
    """Tell a full disk by its name; anything else is a fault of ours, and a traceback helps to report it."""
    from cluster.disk import disk_full_error, is_disk_full
    from cluster.urls import masked

    if isinstance(error, OSError) and is_disk_full(error):
        full = disk_full_error(error)
        _tell(full, as_json=as_json)
        sys.exit(full.exit_code)
    sys.stderr.write(masked("".join(traceback.format_exception(error))))
    sys.exit(1)


def _print_error(message: str) -> None:
    from orchestrator.display import err, shortened

    err.print("error:", style="bold red", end=" ")
    err.print(shortened(message))


def _command(group: typer.Typer, example: str, *, name: str | None = None) -> Callable[[Command], Command]:
    """Register a command whose help begins with an example."""

    def register(function: Command) -> Command:
        text = function.__doc__ or ""
        short = text.split(". ")[0].split(": ")[0].rstrip(".") + "."
        return group.command(name, help=f"`{example}`\n\n{text}", short_help=short)(function)

    return register


def _store(url: str | None) -> "Store":
    from cluster.storage import open_store

    return open_store(url)


# ---------------------------------------------------------------------------------------------------- local cluster


@_command(app, "orchestrator demo")
def demo(
    json: Json = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the local cluster and the endpoints running.")] = False,
) -> None:
    """See all of it in about two minutes: push, train, sweep, deploy and query, on data that comes with the package."""
    from orchestrator.demo import run_demo
    from orchestrator.display import emit, next_steps, out

    report = run_demo(keep=keep)

    def show() -> None:
        for query in report["queries"]:
            out.print(f"asked   {query['ask']}\nanswer  {query['answer']}\ntruth   {query['truth']}\n", markup=False)
        out.print(f"Everything is in {report['store']}; it took {sum(report['seconds'].values()):.0f} s.")
        next_steps(*report["next"])

    emit(report, as_json=json, show=show)


@_command(app, "orchestrator doctor")
def doctor(json: Json = False, address: Address = None, store: StoreUrl = None) -> None:
    """Check Python, torch, Ray, the store, ports and disk: one line and one cure each."""
    from orchestrator.display import emit, out
    from orchestrator.doctor import run_checks

    checks = run_checks(address=address, store_url=store)

    def show() -> None:
        for check in checks:
            out.print("ok  " if check.ok else "FAIL", style="green" if check.ok else "red", end=" ")
            out.print(f"{check.name:<12} {check.detail}")
            if not check.ok:
                out.print(f"     {'':<12} {check.cure}", style="yellow")

    emit(checks, as_json=json, show=show)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@_command(app, "orchestrator up")
def up(
    json: Json = False,
    cpus: Annotated[int | None, typer.Option(help="Logical CPUs of the Ray head; default: all.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of the Ray head; default: all.")] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Start a Ray head.")] = True,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Start an S3 store.")] = True,
    redeploy: Annotated[
        bool, typer.Option("--redeploy", help="Serve again what was deployed when the Ray head before ended.")
    ] = False,
) -> None:
    """Start a Ray head and an S3 store on this machine; what already runs is left alone.

    A cluster that RAY_ADDRESS names, or a store that ORCHESTRATOR_STORE names, is used instead of a local one.
    Endpoints end with the Ray head that served them; those of an earlier one are named.
    """
    from cluster import local
    from cluster.session import named_cluster
    from cluster.storage import named_store
    from orchestrator.display import emit, next_steps, out
    from serving.deployed import gone_endpoints

    started = time.perf_counter()
    cluster, place = named_cluster(), named_store()
    if redeploy and (cluster is not None or not ray):
        found = cluster.address if cluster else "--no-ray"
        raise ConfigError(f"--redeploy must have the local Ray head, got {found}. Use `orchestrator deploy NAME`.")
    state = local.up(cpus=cpus, gpus=gpus, with_ray=ray and cluster is None, with_store=store and place is None)
    gone = gone_endpoints(state.ray)
    back = _redeploy(gone, state) if redeploy else []
    seconds = time.perf_counter() - started

    def show() -> None:
        if cluster:
            out.print(f"Ray        {cluster.address} (from {cluster.source}): yours, nothing to start")
        elif state.ray:
            out.print(f"Ray        {state.ray.address}   dashboard {state.ray.dashboard_url}")
            out.print(f"           token in {state.ray.token_file} (for the dashboard and other clients)")
        if place:
            out.print(f"Store      {place} (from ORCHESTRATOR_STORE): yours, nothing to start")
        elif state.store:
            settings = state.store.settings
            out.print(f"Store      {settings.url} at {settings.endpoint_url}")
            out.print(f"           keys in {settings.credentials_file}, profile {settings.profile}")
        for endpoint in back:
            out.print(f"Endpoint   {endpoint.name} {endpoint.version} answers again at {endpoint.predict_url}")
        out.print(f"ready in {seconds:.1f} s", style="dim")
        if gone and not back:
            out.print(f"\n{_gone_line(gone)}", style="yellow")
            next_steps("orchestrator up --redeploy", "orchestrator down")
            return
        next_steps("orchestrator data push sklearn:digits", "orchestrator train digits-cnn", "orchestrator down")

    emit({**state.model_dump(mode="json"), "gone_endpoints": gone, "redeployed": back}, as_json=json, show=show)


def _gone_line(gone: "list[Deployed]") -> str:
    names = ", ".join(f"{endpoint.name} {endpoint.version}" for endpoint in gone)
    return f"Endpoints that were deployed went with the Ray head that served them: {names}."


def _redeploy(gone: "list[Deployed]", state: "LocalState") -> "list[Endpoint]":
    """Serve every endpoint again that can be; then raise what one of them raised."""
    from cluster.session import ray_session
    from orchestrator.display import note
    from serving import deploy as serving
    from serving.deployed import store_of

    assert state.ray is not None
    back, failures = [], []
    for endpoint in gone:
        note(f"deploying {endpoint.name} {endpoint.version}")
        try:
            store = store_of(endpoint, state.store)
            with ray_session(state.ray.address, store=store.settings, serves=True):
                back.append(serving.redeploy(endpoint, store))
        except OrchestratorError as error:
            failures.append(error)
            note(f"{endpoint.name} {endpoint.version} is still gone: {error}")
    if failures:
        raise failures[0]
    return back


@_command(app, "orchestrator down")
def down(
    json: Json = False,
    delete_data: Annotated[bool, typer.Option("--delete-data", help="Remove the local store's data too.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """End what `up` started, and nothing else. The store's data stay, unless you say otherwise."""
    from cluster import local
    from orchestrator.data.cache import clear_cache
    from orchestrator.display import emit, out
    from serving.deployed import forget_deleted

    if dry_run:
        state = local.status()
        found = [part for part in (state.ray, state.store) if part and part.running()]
        emit(state, as_json=json, show=lambda: out.print(f"would end {len(found)} servers, and no others"))
        return
    if delete_data and not yes and not typer.confirm("Delete every dataset, run and model in the local store?"):
        raise typer.Exit(1)
    ended = local.down(delete_data=delete_data)
    clear_cache("memory")
    if delete_data:
        forget_deleted()
    emit({"ended": ended}, as_json=json, show=lambda: out.print("\n".join(ended) or "nothing was running"))


@_command(app, "orchestrator status")
def status(json: Json = False, address: Address = None, store: StoreUrl = None) -> None:
    """Show which cluster and which store would be used, and whether they answer."""
    from orchestrator.display import emit, next_steps, out
    from orchestrator.doctor import check_servers

    checks = check_servers(address=address, store_url=store)

    def show() -> None:
        for check in checks:
            out.print(f"{check.name:<8}{'ok' if check.ok else 'not usable':<12}{check.detail}", markup=False)
        if not all(check.ok for check in checks):
            next_steps("orchestrator up", "orchestrator doctor")

    emit(checks, as_json=json, show=show)


# ------------------------------------------------------------------------------------------------------------- data


@_command(data_app, "orchestrator data push ./ml-100k/u.data --name movielens-100k", name="push")
def data_push(
    source: Annotated[
        str,
        typer.Argument(
            help="File, folder, archive, s3:// prefix, https:// URL[#sha256=HEX], an official dataset (cifar10, mnist, "
            "movielens-100k, etth1, …), or one that a library brings along (sklearn:digits)."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Of the dataset; default: from the source.")] = None,
    format: Annotated[str | None, typer.Option(help="Of the source, where it cannot be told.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the format; see docs/data.md."),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Write all objects again: one is damaged.")] = False,
    cluster: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(
            help="Prepare on Ray Data. auto: sources of 1 GiB and more, if the local cluster runs.",
        ),
    ] = "auto",
    address: Address = None,
    json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Write a dataset into the store as verified Parquet shards. Pushing the same content twice changes nothing."""
    from orchestrator.configfile import parse_words
    from orchestrator.data.push import push
    from orchestrator.data.sources.options import parse_options
    from orchestrator.display import emit, next_steps, out, push_progress

    options = parse_options(parse_words(option or []))
    opened = _store(store)
    opened.check()
    with push_progress() as (on_rows, on_download):
        result = push(
            opened,
            source,
            name=name,
            format=format,
            options=options,
            repair=repair,
            on_cluster=cluster,
            address=address,
            progress=on_rows,
            download_progress=on_download,
        )

    def show() -> None:
        verb = "pushed" if result.changed else "unchanged"
        out.print(f"{verb} {result.manifest.name} version {result.manifest.version}")
        _print_splits(result.manifest)
        name = result.manifest.name
        next_steps(f"orchestrator data show {name} --html {name}.html", "orchestrator recipes")

    emit({"changed": result.changed, "manifest": result.manifest}, as_json=json, show=show)


@_command(data_app, "orchestrator data ls", name="ls")
def data_ls(json: Json = False, store: StoreUrl = None) -> None:
    """List the datasets in the store."""
    from orchestrator.data.push import ls
    from orchestrator.display import emit, note_damaged, table

    found, damaged = ls(_store(store))
    rows = [(d.name, d.version, sum(d.rows.values()), ", ".join(d.features), d.source, d.created) for d in found]
    columns = ("dataset", "version", "rows", "features", "source", "created")
    emit(found, as_json=json, show=lambda: table(columns, rows))
    note_damaged(damaged)


@_command(data_app, "orchestrator data show movielens-100k", name="show")
def data_show(
    name: str,
    version: Annotated[str | None, typer.Option(help="Default: the newest.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with samples, class balance and statistics.")
    ] = None,
    json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Print a dataset's card: features, splits, source."""
    from orchestrator.data.dataset import open_dataset
    from orchestrator.display import emit, out

    opened = _store(store)
    manifest = open_dataset(opened, name, version=version).manifest
    if html is not None:
        from orchestrator.data.page import write_page

        write_page(opened, name, version=manifest.version, path=html)

    def show() -> None:
        out.print(f"{manifest.name} version {manifest.version}, {manifest.source.format} from {manifest.source.uri}")
        out.print(f"created {manifest.created}; licence: {manifest.source.licence or 'not stated'}")
        for feature_name, feature in manifest.features.items():
            out.print(f"  {feature_name}: {_feature(feature)}", markup=False)
        out.print(f"  target: {_feature(manifest.target)}", markup=False)
        _print_splits(manifest)
        if html is not None:
            out.print(f"page: {html}", markup=False)

    emit(manifest, as_json=json, show=show)


def _feature(feature: Any) -> str:
    match feature.kind:
        case "image":
            kept = "" if feature.encoding == "raw" else ", scaled from files"
            return "picture, {} × {} × {}".format(*feature.shape) + kept
        case "vector":
            return f"{len(feature.names)} numbers"
        case "categorical":
            return f"one of {len(feature.vocabulary):,} values"
        case "series":
            return f"series of {len(feature.channels)} channels: {', '.join(feature.channels[:8])}"
        case "class":
            return f"one of {len(feature.classes)} classes: {', '.join(feature.classes[:12])}"
        case "number":
            return f"number from {feature.minimum:g} to {feature.maximum:g}, mean {feature.mean:.4g}"
        case "text":
            return f"text of up to {feature.max_tokens:,} words, {len(feature.vocabulary):,} of them known"
        case "audio":
            return f"sound of up to {feature.max_samples / feature.sample_rate:.3g} s at {feature.sample_rate:,} Hz"
        case "sparse":
            return f"sparse row of {feature.columns:,} numbers"
        case "boxes":
            return f"boxes of {len(feature.classes)} classes: {', '.join(feature.classes[:12])}"
    return "the series itself"


def _print_splits(manifest: Any) -> None:
    from orchestrator.display import size, table

    rows = [
        (name, split.rows, len(split.shards), size(sum(s.bytes for s in split.shards)))
        for name, split in manifest.splits.items()
    ]
    table(("split", "rows", "shards", "size"), rows)


# ---------------------------------------------------------------------------------------------------------- recipes


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context, json: Json = False) -> None:
    """List the experiments that ship with the package: `orchestrator recipes`."""
    from orchestrator.display import emit, next_steps, table
    from orchestrator.recipe import recipe_names, recipe_title

    if context.invoked_subcommand:
        return
    names = recipe_names()

    def show() -> None:
        table(("recipe", "what it shows"), [(name, recipe_title(name)) for name in names])
        next_steps("orchestrator recipes copy digits-cnn my.yaml", "orchestrator train digits-cnn")

    emit({name: recipe_title(name) for name in names}, as_json=json, show=show)


@_command(recipes_app, "orchestrator recipes copy cifar10-cnn my.yaml", name="copy")
def recipes_copy(name: str, file: Path) -> None:
    """Write a recipe into a file of your own, to change it."""
    from orchestrator.configfile import near_miss
    from orchestrator.display import next_steps
    from orchestrator.recipe import recipe_names, recipe_path

    if name not in recipe_names():
        raise ConfigError(f"recipe must be a shipped one, got {name!r}. {near_miss(name, recipe_names())}")
    if file.exists():
        raise ConfigError(f"{file} must be a new file, got one that exists. Name another.")
    file.write_text(recipe_path(name).read_text())
    next_steps(f"orchestrator check {file}", f"orchestrator train {file}")


# --------------------------------------------------------------------------------------------------------- training


@_command(app, "orchestrator check my.yaml train.epochs=5")
def check(config: Config, overrides: Overrides = None, json: Json = False) -> None:
    """Validate an experiment without touching store or cluster, and print it with every default filled in."""
    import yaml

    from orchestrator.configfile import load_experiment
    from orchestrator.display import emit, out

    experiment = load_experiment(config, overrides or [])
    values = experiment.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
    emit(experiment, as_json=json, show=lambda: out.print(text.rstrip(), markup=False))


@_command(app, "orchestrator train cifar10-cnn scaling.workers=2")
def train(
    config: Config,
    overrides: Overrides = None,
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
    run: Annotated[str | None, typer.Option(help="Name of the new run; default: made from data, model, time.")] = None,
) -> None:
    """Train one experiment on the cluster; what it will do is printed first, every epoch as it ends."""
    from orchestrator.configfile import load_experiment

    experiment = load_experiment(config, overrides or [])
    _print_address(address)
    from orchestrator.train import train as train_experiment

    opened = _store(store)
    _follow_training(
        opened,
        lambda on_start, on_progress: train_experiment(
            experiment, store=opened, address=address, run=run, on_start=on_start, on_progress=on_progress
        ),
        as_json=json,
    )


@_command(app, "orchestrator resume cifar10-cnn-20261122-101500-a1b2")
def resume(
    run: str,
    workers: Annotated[int | None, typer.Option(help="Another number of workers than before.")] = None,
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
) -> None:
    """Continue a stopped run from its newest valid checkpoint; it ends with the weights of an unbroken one."""
    from orchestrator.train import resume as resume_run

    _print_address(address)
    opened = _store(store)
    _follow_training(
        opened,
        lambda on_start, on_progress: resume_run(
            run, store=opened, address=address, workers=workers, on_start=on_start, on_progress=on_progress
        ),
        as_json=json,
    )


@_command(app, "orchestrator runs")
def runs(
    json: Json = False,
    all: Annotated[bool, typer.Option("--all", help="The cells of sweeps too.")] = False,
    store: StoreUrl = None,
) -> None:
    """List the runs in the store, newest first."""
    from orchestrator.display import emit, note_damaged, table
    from orchestrator.runs import find_runs

    found = find_runs(_store(store))
    records = [r for r in found.found if all or r.sweep is None]
    rows = [(r.run, r.state, r.primary_metric, r.metrics.get(r.primary_metric), r.seconds, r.created) for r in records]
    columns = ("run", "state", "metric", "value", "seconds", "created")
    emit(records, as_json=json, show=lambda: table(columns, rows))
    note_damaged(found.damaged)


@_command(app, "orchestrator show cifar10-cnn-20261122-101500-a1b2")
def show(run: str, json: Json = False, store: StoreUrl = None) -> None:
    """Show one run: its state, its metrics per epoch, what it used."""
    from orchestrator.display import emit, out, print_receipt, table
    from orchestrator.runs import read_history, read_run, read_status, with_live_state

    opened = _store(store)
    record = with_live_state(opened, read_run(opened, run))
    history, spent = read_history(opened, run), _receipt(opened, record)

    def print_run() -> None:
        out.print(f"{record.run}: {record.state}, created {record.created}")
        out.print(f"dataset {record.dataset.name} {record.dataset.version} · code {record.code_version}")
        out.print(f"techniques {_techniques(record)}", markup=False)
        if history:
            columns = ["epoch", *(name for name in history[-1] if name not in ("epoch", "learning_rate", "why"))]
            table(columns, [[entry.get(name) for name in columns] for entry in history])
        for line in result_lines(record):
            out.print(line)
        print_receipt(spent)
        if record.error:
            out.print(record.error, markup=False, style="red")

    status = read_status(opened, run)
    emit({"record": record, "history": history, "status": status, "receipt": spent}, as_json=json, show=print_run)


@_command(app, "orchestrator gc --dry-run", name="gc")
def gc_command(
    run: Annotated[str | None, typer.Argument(help="One run; default: all that nobody works on.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Remove checkpoints whose upload never ended: what a killed run leaves behind. Resuming does it too."""
    from orchestrator.checkpoint import collect_garbage
    from orchestrator.display import emit, out
    from orchestrator.lease import Lease
    from orchestrator.runs import list_runs, read_run

    opened = _store(store)
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


@_command(app, "orchestrator drill digits-cnn --workers 2")
def drill(
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
        _delete_drills(_store(store), yes=yes, dry_run=dry_run, as_json=json)
        return
    from orchestrator.configfile import load_experiment

    experiment = load_experiment(config, overrides or [])
    from orchestrator import drill as drills
    from orchestrator.display import emit, note, out, print_drill, training_progress

    plan = drills.plan_drill(experiment, name="drill", kill=kill, workers=workers, epochs=epochs)
    if dry_run:
        text = f"would train {plan.experiment.model.type} twice for {epochs} epochs and kill one {kill}"
        emit(plan.experiment, as_json=json, show=lambda: out.print(text))
        return
    _print_address(address)

    def on_start(record: "RunRecord", arithmetic: "Arithmetic") -> None:
        note(f"run {record.run}: {arithmetic.updates:,} updates")

    with training_progress(lambda _done: None) as on_progress:
        result = drills.drill(
            experiment,
            store=_store(store),
            address=address,
            kill=kill,
            workers=workers,
            epochs=epochs,
            keep_checkpoints=keep,
            on_start=on_start,
            on_progress=on_progress,
        )
    emit(result, as_json=json, show=lambda: print_drill(result))
    if not result.passed:
        raise typer.Exit(100)


def _delete_drills(store: "Store", *, yes: bool, dry_run: bool, as_json: bool) -> None:
    from orchestrator.display import emit, out
    from orchestrator.drill import delete_drills, list_drills

    found = list_drills(store)
    if found and not dry_run:
        if not yes and not typer.confirm(f"Delete {len(found)} runs of drills, with all that they left?"):
            raise typer.Exit(1)
        delete_drills(store, found)
    verb = "would delete" if dry_run else "deleted"
    lines = [f"{verb} {run}" for run in found] or ["no drill has left a run"]
    emit({"runs": found, "deleted": not dry_run}, as_json=as_json, show=lambda: out.print("\n".join(lines)))


def _receipt(store: "Store", record: "RunRecord") -> "Receipt":
    """What the restarts of a run have cost so far."""
    from orchestrator.attempts import read_attempts, receipt

    return receipt(read_attempts(store, record.run), dollars_per_hour=record.experiment.scaling.dollars_per_hour)


def _print_address(address: str | None) -> None:
    from cluster.session import resolve_address
    from orchestrator.display import note

    found = resolve_address(address)
    note(f"cluster {found.address} (from {found.source})")


def _techniques(record: "RunRecord") -> str:
    chosen = {k: v for k, v in record.techniques.model_dump().items() if v is not None}
    text = ", ".join(f"{k}={v}" for k, v in chosen.items())
    return text + "".join(f"; {name} is not applicable" for name in record.not_applicable)


def _follow_training(store: "Store", start: Callable[..., "RunResult"], *, as_json: bool) -> None:
    from orchestrator.display import emit, next_steps, note, out, print_receipt, training_progress
    from orchestrator.runs import read_history

    current: list[RunRecord] = []

    def on_start(record: "RunRecord", arithmetic: "Arithmetic") -> None:
        current.append(record)
        for line in arithmetic_lines(record, arithmetic):
            note(line)

    def on_epoch(done: int) -> str | None:
        history = read_history(store, current[0].run)
        return epoch_line(history[done - 1], current[0]) if len(history) >= done else None

    with training_progress(on_epoch) as on_progress:
        result = start(on_start, on_progress)
    spent = _receipt(store, result.record)

    def show() -> None:
        record = result.record
        out.print(epoch_line(result.history[-1], record), style="dim")
        first = f", first step after {record.first_step_s:.1f} s" if record.first_step_s else ""
        out.print(f"run {result.run} finished in {record.seconds:.1f} s{first}")
        for line in result_lines(record):
            out.print(line, style="bold")
        print_receipt(spent)
        out.print(f"folder: {store.settings.url}/runs/{result.run}/")
        name = record.dataset.name
        next_steps(f"orchestrator models promote {result.run} {name}", f"orchestrator deploy {name}")

    found = {"run": result.run, "metrics": result.metrics, "history": result.history, "record": result.record}
    emit(found | {"receipt": spent}, as_json=as_json, show=show)


def arithmetic_lines(record: "RunRecord", arithmetic: "Arithmetic") -> list[str]:
    """What a training will do, in three lines."""
    train, scaling = record.experiment.train, record.experiment.scaling
    count = scaling.num_logical_workers
    fewest, most = scaling.min_workers, scaling.max_workers
    workers = f"{most} workers" if fewest == most else f"{fewest} to {most} workers"
    model = record.experiment.model.type
    return [
        f"run {record.run}: {model} with {arithmetic.parameters:,} parameters on {record.dataset.name}",
        f"techniques {_techniques(record)}",
        f"{arithmetic.samples:,} samples in {arithmetic.steps_per_epoch:,} steps of {train.batch_size} "
        f"({count} pieces of {arithmetic.batch_per_logical_worker} for {workers}) × {train.epochs} epochs "
        f"= {arithmetic.updates:,} updates",
    ]


def result_lines(record: "RunRecord") -> list[str]:
    """The final metrics and, beside them, what a rule without learning reaches."""
    from orchestrator.display import metrics_line

    lines = [f"{record.evaluated_on}: {metrics_line(record.metrics)}"] if record.metrics else []
    if record.baseline:
        lines.append(f"baseline ({record.baseline}): {metrics_line(record.baseline_metrics)}")
    return lines


def epoch_line(metrics: "EpochRecord", record: "RunRecord") -> str:
    """One finished epoch in one line."""
    from orchestrator.display import number

    skipped = {"epoch", "train_loss", "learning_rate", "samples_per_s", "waiting_share", "seconds", "why"}
    found = " · ".join(f"{k} {number(v)}" for k, v in metrics.items() if k not in skipped)
    return (
        f"epoch {metrics['epoch']:.0f}/{record.experiment.train.epochs}: train_loss {number(metrics['train_loss'])} · "
        f"{found} · {metrics['samples_per_s']:,.0f} samples/s · waiting {metrics['waiting_share']:.0%}"
    )


# ------------------------------------------------------------------------------------------------------------ sweep


@_command(app, "orchestrator sweep digits-techniques sweep.seeds=3")
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
    _print_address(address)
    run = _run_search if searches else _run_sweep
    run(experiment, resume, name=name, store=_store(store), address=address, as_json=json)


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
    from orchestrator.search import is_search

    assert name is not None
    return is_search(_store(store), name)


def _run_sweep(
    experiment: Any, resume: str | None, *, name: str | None, store: "Store", address: str | None, as_json: bool
) -> None:
    from orchestrator import sweep as sweeps
    from orchestrator.display import counting_progress, note

    def on_start(record: "SweepRecord") -> None:
        note(f"sweep {record.sweep}: {len(record.arms)} arms × {len(record.seeds)} seeds")
        for line in [*not_applicable_lines(record.arms), *sweeps.plan_lines(record)]:
            note(line)

    with counting_progress("cells") as bar:

        def on_progress(progress: sweeps.SweepProgress) -> None:
            failed = f"{progress.failed} failed" if progress.failed else ""
            bar(progress.done, progress.total, failed)

        if experiment:
            result = sweeps.sweep(
                experiment, store=store, address=address, name=name, on_start=on_start, on_progress=on_progress
            )
        else:
            assert resume is not None
            result = sweeps.resume_sweep(
                resume, store=store, address=address, on_start=on_start, on_progress=on_progress
            )
    _print_sweep(result, as_json=as_json)


def _run_search(
    experiment: Any, resume: str | None, *, name: str | None, store: "Store", address: str | None, as_json: bool
) -> None:
    from orchestrator import search as searches
    from orchestrator.display import counting_progress, note

    def on_start(record: "SearchRecord") -> None:
        settings = record.experiment.search
        assert settings is not None
        note(f"search {record.search}: {settings.trials} trials by {settings.method}")
        for line in searches.plan_lines(record):
            note(line)

    with counting_progress("trials") as bar:

        def on_progress(progress: searches.SearchProgress) -> None:
            bar(progress.done, progress.total, _search_detail(progress))

        if experiment:
            result = searches.search(
                experiment, store=store, address=address, name=name, on_start=on_start, on_progress=on_progress
            )
        else:
            assert resume is not None
            result = searches.resume_search(
                resume, store=store, address=address, on_start=on_start, on_progress=on_progress
            )
    _print_search(result, as_json=as_json)


def _search_detail(progress: Any) -> str:
    from orchestrator.display import number

    parts = [f"{count} {state}" for state, count in progress.counts.items() if count and state != "finished"]
    if progress.best:
        parts.append(f"best {number(progress.best.value)}")
    return ", ".join(parts)


@_command(app, "orchestrator report digits-cnn-20261122-101500-a1b2-sweep --html report.html")
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
    from orchestrator import report_tables
    from orchestrator import sweep as sweeps
    from orchestrator.display import emit, note
    from orchestrator.search import is_search, read_result

    opened = _store(store)
    if is_search(opened, sweep):
        if html or parquet:
            raise ConfigError(
                f"report must be of a sweep for --html or --parquet, got the search {sweep}. "
                f"See its trials: orchestrator report {sweep} --json."
            )
        _print_search(read_result(opened, sweep), as_json=json)
        return
    record = sweeps.read_sweep(opened, sweep)
    cells = sweeps.read_cells(opened, sweep)
    # how long all took is not known: it may still run, or have been resumed
    result = sweeps.SweepResult(sweep, sweeps.ledger_of(record, cells), cells, record, seconds=math.nan)
    written = list(report_tables.write_parquet(result, parquet)) if parquet else []
    if html:
        from orchestrator.report import write_report

        written.append(write_report(result, html))
    for path in written:
        note(f"wrote {path}")
    emit(report_tables.report_data(result), as_json=json, show=lambda: report_tables.print_report(result))


def not_applicable_lines(arms: Any) -> list[str]:
    """Which varied settings some arms do not have."""
    lines = {
        f"{name} is not applicable to model.type {arm.experiment.model.type}: not varied there"
        for arm in arms
        for name in arm.not_applicable
    }
    return sorted(lines)


def _print_plan(experiment: Any, *, store: str | None, address: str | None, as_json: bool) -> None:
    from orchestrator import sweep as sweeps
    from orchestrator.display import emit, note, out, table

    design, arms = sweeps.plan_sweep(experiment)
    try:
        record = sweeps.predict_sweep(experiment, store=_store(store), address=address)
    except OrchestratorError as error:
        if experiment.sweep.budget:
            raise
        note(f"time and cost are not predicted: {error}")
        record = None
    seeds = len(record.seeds) if record else experiment.sweep.seeds
    lines = sweeps.plan_lines(record) if record else [*design.generators, *design.aliases, *design.notes]

    def show() -> None:
        names = list(experiment.sweep.vary)
        table(("arm", *names), [(arm.name, *(arm.settings.get(n, "–") for n in names)) for arm in arms])
        out.print(f"{len(arms)} arms × {seeds} seeds = {len(arms) * seeds} trainings")
        out.print(*not_applicable_lines(arms), *lines, sep="\n", markup=False)

    prediction = record.prediction if record else None
    emit({"arms": arms, "seeds": seeds, "prediction": prediction}, as_json=as_json, show=show)


def _print_space(experiment: Any, *, store: str | None, address: str | None, as_json: bool) -> None:  # noqa: ARG001
    from orchestrator.display import emit, out, table
    from orchestrator.search import space_rows
    from orchestrator.search_space import probes

    probes(experiment)
    rows, settings = space_rows(experiment), experiment.search

    def show() -> None:
        table(("setting", "values"), rows)
        epochs = experiment.train.epochs
        out.print(f"{settings.trials} trials by {settings.method}, of {epochs} epochs each unless stopped early")

    emit({"search": settings, "epochs": experiment.train.epochs}, as_json=as_json, show=show)


SHOWN_TRIALS = 10


def _print_search(result: "SearchResult", *, as_json: bool) -> None:
    from orchestrator.display import emit, metrics_line, out, table
    from orchestrator.search import counts_of

    record, best = result.record, result.best
    settings = record.experiment.search
    assert settings is not None
    counts = counts_of(result.trials)

    def show() -> None:
        columns = (record.metric, *settings.space, "epochs", "seconds", "state", "run")
        rows = [
            (t.value, *(t.values[name] for name in settings.space), t.epochs, t.seconds, t.state, t.run)
            for t in result.trials[:SHOWN_TRIALS]
        ]
        table(columns, rows)
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
    from orchestrator.display import next_steps

    name, best = result.record.experiment.data.name, result.best
    if result.record.state == "running":
        next_steps(f"orchestrator sweep --resume {result.search}")
    elif best:
        promote = f"orchestrator models promote {best.run} {name}"
        next_steps(f"orchestrator show {best.run}", promote, f"orchestrator deploy {name}")


def _print_sweep(result: "SweepResult", *, as_json: bool) -> None:
    from orchestrator.display import emit, next_steps, out
    from orchestrator.report_tables import print_report

    def show() -> None:
        print_report(result)
        out.print(f"{len(result.cells)} trainings in {result.seconds:.1f} s")
        name = result.record.experiment.data.name
        steps = [f"orchestrator report {result.sweep} --html report.html"]
        if result.ledger.best_run:
            steps += [f"orchestrator models promote {result.ledger.best_run} {name}", f"orchestrator deploy {name}"]
        next_steps(*steps)

    emit(
        {"sweep": result.sweep, "ledger": result.ledger, "cells": result.cells, "seconds": result.seconds},
        as_json=as_json,
        show=show,
    )


# ---------------------------------------------------------------------------------------------- registry and serving


@_command(models_app, "orchestrator models promote cifar10-cnn-20261122-101500-a1b2 cifar10", name="promote")
def models_promote(run: str, name: str, json: Json = False, store: StoreUrl = None) -> None:
    """Make a finished run the newest version, and the champion, of model NAME."""
    from orchestrator.display import emit, next_steps, out
    from serving import registry

    version = registry.promote(_store(store), run=run, name=name)

    def show() -> None:
        out.print(f"{name} {version.version} is the champion (weights {version.weights_sha256[:12]})")
        next_steps(f"orchestrator deploy {name}")

    emit(version, as_json=json, show=show)


@_command(models_app, "orchestrator models ls", name="ls")
def models_ls(json: Json = False, store: StoreUrl = None) -> None:
    """List all models with their versions and metrics."""
    from orchestrator.display import emit, metrics_line, note_damaged, table
    from serving import registry

    found, damaged = registry.list_versions(_store(store))
    rows = [
        (v.name, v.version, "champion" if is_champion else "", metrics_line(v.metrics), v.lineage.run)
        for v, is_champion in found
    ]
    emit(
        [{"champion": is_champion, **version.model_dump(mode="json")} for version, is_champion in found],
        as_json=json,
        show=lambda: table(("model", "version", "alias", "metrics", "run"), rows),
    )
    note_damaged(damaged)


@_command(models_app, "orchestrator models show cifar10", name="show")
def models_show(
    name: str,
    version: Annotated[str | None, typer.Option(help="Default: the champion.")] = None,
    json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Show a version's card: configuration, metrics, lineage."""
    from orchestrator.display import emit, out
    from serving import registry

    opened = _store(store)
    found = registry.show(opened, name=name, version=version)
    card = registry.read_card(opened, found)
    emit(found, as_json=json, show=lambda: out.print(card, markup=False))


@_command(app, "orchestrator deploy cifar10")
def deploy(
    name: str,
    version: Annotated[str | None, typer.Option(help="Default: the champion.")] = None,
    port: Annotated[int, typer.Option(help="Of the HTTP server, if none runs yet; 0 finds a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that answer.")] = 1,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs that each reserves; 0 leaves all to training.")] = 0,
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
) -> None:
    """Serve a model over HTTP; returns when it has answered its golden example."""
    from cluster.session import ray_session
    from orchestrator.display import emit, next_steps, out
    from serving import deploy as serving

    opened = _store(store)
    opened.check()
    _print_address(address)
    with ray_session(address, store=opened.settings, serves=True):
        endpoint = serving.deploy(opened, name=name, version=version, port=port, replicas=replicas, cpus=cpus)

    def show() -> None:
        out.print(f"{name} {endpoint.version} answers at {endpoint.url}/models/{name}/predict")
        out.print(f"page {endpoint.url}/   API {endpoint.url}/docs   token in {endpoint.token_file}")
        next_steps(f"orchestrator predict {name} INPUT", f"orchestrator undeploy {name}")

    emit(endpoint, as_json=json, show=show)


@_command(app, "orchestrator rollback cifar10")
def rollback(name: str, json: Json = False, address: Address = None, store: StoreUrl = None) -> None:
    """Make the champion before this one the champion again, and serve it."""
    from cluster.session import ray_session
    from orchestrator.display import emit, out
    from serving import deploy as serving

    opened = _store(store)
    with ray_session(address, store=opened.settings, serves=True):
        endpoint = serving.rollback_endpoint(opened, name)
    emit(endpoint, as_json=json, show=lambda: out.print(f"{name} serves {endpoint.version} again"))


@_command(app, "orchestrator undeploy cifar10")
def undeploy(
    name: str,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
) -> None:
    """Stop serving a model; its versions stay in the registry."""
    from cluster.session import ray_session
    from orchestrator.display import emit, out
    from serving import deploy as serving

    if dry_run:
        out.print(f"would stop serving {name}")
        return
    if not yes and sys.stdin.isatty() and not typer.confirm(f"Stop serving {name}?"):
        raise typer.Exit(1)
    with ray_session(address, store=_store(store).settings):
        serving.undeploy(name)
    emit({"undeployed": name}, as_json=json, show=lambda: out.print(f"{name} is no longer served"))


@_command(app, "orchestrator endpoints")
def endpoints(json: Json = False, address: Address = None, store: StoreUrl = None) -> None:
    """List what is served."""
    from cluster.session import local_head, ray_session
    from orchestrator.display import emit, note, table
    from serving import deploy as serving
    from serving.deployed import gone_endpoints

    opened = _store(store)
    with ray_session(address, store=opened.settings):
        found, gone = serving.endpoints(), gone_endpoints(local_head())
    if gone:
        note(f"{_gone_line(gone)} Bring them back: orchestrator up --redeploy")
    rows = [(e.name, e.version, e.status, e.replicas, e.url) for e in found]
    emit(found, as_json=json, show=lambda: table(("endpoint", "version", "status", "replicas", "url"), rows))


@_command(app, "orchestrator predict movielens user=196 item=242")
def predict(
    name: str,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="A picture, a CSV of a series, or NAME=VALUE pairs.")
    ],
    url: Annotated[
        str | None, typer.Option(envvar="ORCHESTRATOR_ENDPOINT", help="Default: the local endpoint.")
    ] = None,
    json: Json = False,
) -> None:
    """Ask a deployed model."""
    from orchestrator.display import emit, out
    from serving.client import Client, answer_line

    answer = Client(url).predict_words(name, inputs)
    emit(answer, as_json=json, show=lambda: out.print(answer_line(answer), markup=False))


# ------------------------------------------------------------------------------------------------------------- jobs


@_command(app, "orchestrator submit train cifar10-cnn --address http://head:8265")
def submit(
    verb: Annotated[str, typer.Argument(metavar="train|sweep", help="What to run.")],
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    store: StoreUrl = None,
    job: Annotated[str | None, typer.Option(help="Id of the job; submitting the same id again does nothing.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show its log; Ctrl-C leaves it running.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a training or a sweep as a job on the cluster, so that this machine may go."""
    from orchestrator.display import emit, next_steps, note, out
    from orchestrator.jobs import submit as submit_job

    opened = _store(store)
    submitted = submit_job(verb, config, overrides or [], store=opened, address=address, job=job)
    note(f"cluster {submitted.address}")

    def show() -> None:
        out.print(f"job {submitted.job} {'submitted' if submitted.new else 'was there already'}")
        next_steps(
            f"orchestrator logs {submitted.job} --follow", f"orchestrator stop {submitted.job}", "orchestrator jobs"
        )

    if follow:
        note("Ctrl-C stops watching, not the job")
        logs(submitted.job, follow=True, address=address)
    emit(submitted, as_json=json, show=show)


@_command(app, "orchestrator jobs")
def jobs(json: Json = False, address: Address = None) -> None:
    """List the cluster's jobs."""
    from cluster.jobs import jobs as list_jobs
    from orchestrator.display import emit, table

    found = list_jobs(address)
    rows = [(j.job, j.status, j.started or "–", j.ended or "–", j.metadata.get("command", j.entrypoint)) for j in found]
    emit(found, as_json=json, show=lambda: table(("job", "status", "started", "ended", "command"), rows))


@_command(app, "orchestrator logs JOB --follow")
def logs(
    job: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    address: Address = None,
) -> None:
    """Print a job's log. With --follow, the exit code is the job's."""
    from cluster.jobs import logs as job_logs
    from cluster.jobs import require_success
    from orchestrator.display import note, print_log

    try:
        for text in job_logs(job, address=address, follow=follow):
            print_log(text)
    except KeyboardInterrupt:
        note(f"\nthe job goes on. Watch again: orchestrator logs {job} --follow. End it: orchestrator stop {job}")
        raise typer.Exit(130) from None
    if follow:
        require_success(job, address=address)


@_command(app, "orchestrator stop JOB")
def stop(job: str, json: Json = False, address: Address = None) -> None:
    """Stop a job; what it had written can be resumed."""
    from cluster.jobs import stop as stop_job
    from orchestrator.display import emit, out

    status = stop_job(job, address=address)
    emit({"job": job, "status": status}, as_json=json, show=lambda: out.print(f"job {job}: {status}"))
