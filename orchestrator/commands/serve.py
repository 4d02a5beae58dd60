"""Commands for the registry and for endpoints."""

import sys
from typing import Annotated, Literal

import typer

from cluster.process.typed import typed
from orchestrator.commands.app import Address, DryRun, Json, StoreUrl, Yes, command, group, print_address, store_at
from orchestrator.commands.ending import confirm
from orchestrator.commands.local import gone_line

commands = group()
model_commands = group("Trained models in the registry.")
commands.add_typer(model_commands, name="models")


@command(model_commands, "orchestrator models promote cifar10-cnn-20261122-101500-a1b2 cifar10", name="promote")
def models_promote(run: str, name: str, json: Json = False, store: StoreUrl = None) -> None:
    """Make a finished run the newest version, and the champion, of model NAME."""
    from orchestrator.commands.terminal import emit, next_steps, out
    from serving import registry

    version = registry.promote(store_at(store), run=run, name=name)

    def show() -> None:
        out.print(f"{name} {version.version} is the champion (weights {version.weights_sha256[:12]})")
        next_steps(("deploy", name), ("batch-predict", name, version.lineage.dataset.name))

    emit(version, as_json=json, show=show)


@command(model_commands, "orchestrator models ls", name="ls")
def models_ls(json: Json = False, store: StoreUrl = None) -> None:
    """List all models with their versions and metrics."""
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, note_damaged
    from orchestrator.reporting.words import metrics_line
    from serving import registry

    found, damaged = registry.list_versions(store_at(store))
    rows = [
        (v.name, v.version, "champion" if is_champion else "", metrics_line(v.metrics), v.lineage.run)
        for v, is_champion in found
    ]
    columns = ("model", "version", "alias", "metrics", "run")
    emit(
        [{"champion": is_champion, **version.model_dump(mode="json")} for version, is_champion in found],
        as_json=json,
        show=lambda: table(columns, rows, least=("run", "metrics"), prose=["metrics"]),
    )
    note_damaged(damaged)


@command(model_commands, "orchestrator models show cifar10", name="show")
def models_show(
    name: str,
    version: Annotated[str | None, typer.Option(help="Default: the champion.")] = None,
    json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Show a version's card: configuration, metrics, lineage."""
    from orchestrator.commands.terminal import emit, out
    from serving import registry

    opened = store_at(store)
    found = registry.show(opened, name=name, version=version)
    card = registry.read_card(opened, found)
    emit(found, as_json=json, show=lambda: out.print(card, markup=False))


@command(commands, "orchestrator deploy cifar10")
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
    from orchestrator.commands.terminal import emit, next_steps, out
    from serving import deploy as serving

    opened = store_at(store)
    opened.check()
    print_address(address)
    with ray_session(address, store=opened.settings, serves=True):
        endpoint = serving.deploy(opened, name=name, version=version, port=port, replicas=replicas, cpus=cpus)

    def show() -> None:
        out.print(f"{name} {endpoint.version} answers at {endpoint.url}/models/{name}/predict")
        out.print(f"page {endpoint.url}/   API {endpoint.url}/docs   token in {endpoint.token_file}")
        next_steps(("predict", name, "INPUT"), ("batch-predict", name, "SOURCE"), ("undeploy", name))

    emit(endpoint, as_json=json, show=show)


@command(commands, "orchestrator rollback cifar10")
def rollback(name: str, json: Json = False, address: Address = None, store: StoreUrl = None) -> None:
    """Make the champion before this one the champion again, and serve it."""
    from cluster.session import ray_session
    from orchestrator.commands.terminal import emit, out
    from serving import deploy as serving

    opened = store_at(store)
    with ray_session(address, store=opened.settings, serves=True):
        endpoint = serving.rollback_endpoint(opened, name)
    emit(endpoint, as_json=json, show=lambda: out.print(f"{name} serves {endpoint.version} again"))


@command(commands, "orchestrator undeploy cifar10")
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
    from orchestrator.commands.terminal import emit, out
    from serving import deploy as serving

    if dry_run:
        found = {"endpoint": name, "undeployed": False}
        emit(found, as_json=json, show=lambda: out.print(f"would stop serving {name}"))
        return
    confirm(f"Stop serving {name}?", yes=yes or not sys.stdin.isatty())  # a script means it: nothing is lost
    with ray_session(address, store=store_at(store).settings):
        serving.undeploy(name)
    found = {"endpoint": name, "undeployed": True}
    emit(found, as_json=json, show=lambda: out.print(f"{name} is no longer served"))


@command(commands, "orchestrator endpoints")
def endpoints(json: Json = False, address: Address = None, store: StoreUrl = None) -> None:
    """List what is served."""
    from cluster.session import local_head, ray_session
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, note
    from serving import deploy as serving
    from serving.deployed import gone_endpoints

    opened = store_at(store)
    with ray_session(address, store=opened.settings):
        found, gone = serving.endpoints(), gone_endpoints(local_head())
    if gone:
        note(f"{gone_line(gone)} Bring them back: {typed('up', '--redeploy')}")
    rows = [(e.name, e.version, e.status, e.replicas, e.url) for e in found]
    columns = ("endpoint", "version", "status", "replicas", "url")
    emit(found, as_json=json, show=lambda: table(columns, rows, least=("replicas", "version")))


@command(commands, "orchestrator predict movielens user=196 item=242")
def predict(
    name: str,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="A picture, a sound, a text, a CSV of a series, or COLUMN=VALUE pairs."
        ),
    ],
    url: Annotated[
        str | None, typer.Option(envvar="ORCHESTRATOR_ENDPOINT", help="Default: the local endpoint.")
    ] = None,
    json: Json = False,
) -> None:
    """Ask a deployed model."""
    from orchestrator.commands.terminal import emit, out
    from serving.client import Client, answer_line

    answer = Client(url).predict_words(name, inputs)
    emit(answer, as_json=json, show=lambda: out.print(answer_line(answer), markup=False))


@command(commands, "orchestrator batch-predict people ./people.csv", name="batch-predict")
def batch_predict(
    name: str,
    source: Annotated[
        str,
        typer.Argument(
            help="A dataset in the store, NAME or NAME@VERSION; or a file, folder or s3:// address in the form of the "
            "source that the model was trained on: rows with its columns, texts, pictures, sounds, sparse rows."
        ),
    ],
    version: Annotated[str | None, typer.Option(help="Default: the champion.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset; default: all of them.")] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="In the store; default: predictions/NAME/VERSION-DIGEST."),
    ] = None,
    cluster: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Predict on Ray Data. auto: if a cluster is named or running, and there is work for it."),
    ] = "auto",
    json: Json = False,
    address: Address = None,
    store: StoreUrl = None,
) -> None:
    """Predict every row of a dataset or of files, into Parquet files in the store. Repeat it to go on after a stop."""
    from cluster.s3.urls import masked
    from orchestrator.batch_predict import batch_predict as predict_all
    from orchestrator.commands.printing.progress import prediction_progress
    from orchestrator.commands.terminal import emit
    from orchestrator.commands.terminal import out as shown

    opened = store_at(store)
    opened.check()
    with prediction_progress(f"batch-predict {name} {masked(source)}") as on_rows:
        found = predict_all(
            opened,
            name,
            source,
            version=version,
            split=split,
            out=out,
            on_cluster=cluster,
            address=address,
            progress=on_rows,
        )
    plan, rows = found.manifest.plan, found.manifest.rows

    def show() -> None:
        shown.print(f"{rows:,} rows of {plan.source} have answers of {plan.model} {plan.version}")
        if found.resumed_parts:
            shown.print(f"{rows - found.new_rows:,} of them were there already")
        if found.new_rows:
            shown.print(f"{found.new_rows:,} rows in {found.seconds:.1f} s, {found.rows_per_s:,.0f} rows/s")
        shown.print(f"{len(found.manifest.parts)} Parquet files in {found.url}/")

    emit({**found.__dict__, "rows_per_s": found.rows_per_s}, as_json=json, show=show)
