"""Commands for datasets and recipes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cluster.errors import ConfigError
from orchestrator.commands.app import Address, Json, StoreUrl, command, group, store_at

commands = group()
_MOST_ADDITIONS = 10  # that `data show` tells
_ORDERS = {"random": "random", "source": "as in the source", "time": "in time"}
data_commands = group("Datasets in the store.")
recipe_commands = group("Experiments that ship with the package.", is_a_command=True)
commands.add_typer(data_commands, name="data")
commands.add_typer(recipe_commands, name="recipes")


@command(data_commands, "orchestrator data push ./ml-100k/u.data --name movielens-100k", name="push")
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
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Make a new version of the dataset out of its newest one and these rows, which are read by its rules; "
            "its shards are used as they lie.",
        ),
    ] = False,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Version that --append appends to; default: the newest.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Write all objects again: one is damaged.")] = False,
    cluster: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(
            help="Prepare on Ray Data. auto: sources of 1 GiB and more, if the local cluster runs.",
        ),
    ] = "auto",
    source_profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="AWS profile with the keys of an s3:// source; default: the store's."),
    ] = None,
    source_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Server of an s3:// source; default: the profile's or the store's."),
    ] = None,
    address: Address = None,
    json: Json = False,
    store: StoreUrl = None,
) -> None:
    """Write a dataset into the store as verified Parquet shards. Pushing the same content twice changes nothing."""
    from cluster.s3.urls import masked
    from orchestrator.commands.printing.progress import push_progress
    from orchestrator.commands.terminal import emit, next_steps
    from orchestrator.data.push import push
    from orchestrator.data.sources.bundles import BUNDLES
    from orchestrator.data.sources.files import SCHEME, Access, reading_with
    from orchestrator.data.sources.options import parse_options
    from orchestrator.document import parse_words

    if (source_profile or source_endpoint) and not source.startswith(SCHEME):
        raise ConfigError(
            f"--source-profile and --source-endpoint must be left out unless the source is s3://…, got {source}."
        )
    is_known = source in BUNDLES or Path(source).exists()
    options = parse_options(parse_words(option or []), is_source_known=is_known)
    opened = store_at(store)
    opened.check()
    access = Access(profile=source_profile, endpoint_url=source_endpoint)
    with push_progress(f"push {name or masked(source)}") as (on_rows, on_download), reading_with(access):
        result = push(
            opened,
            source,
            name=name,
            format=format,
            options=options,
            append=append,
            to=to,
            repair=repair,
            on_cluster=cluster,
            address=address,
            progress=on_rows,
            download_progress=on_download,
        )

    def show() -> None:
        _print_pushed(result.manifest, changed=result.changed, append=append)
        name = result.manifest.name
        next_steps(("data", "show", name, "--html", f"{name}.html"), ("recipes",))

    emit({"changed": result.changed, "manifest": result.manifest}, as_json=json, show=show)


@command(data_commands, "orchestrator data ls", name="ls")
def data_ls(json: Json = False, store: StoreUrl = None) -> None:
    """List the datasets in the store."""
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, note_damaged
    from orchestrator.data.push import ls

    found, damaged = ls(store_at(store))
    rows = [(d.name, d.version, sum(d.rows.values()), ", ".join(d.features), d.source, d.created) for d in found]
    columns = ("dataset", "version", "rows", "features", "source", "created")
    order = ("source", "created", "features", "version")
    emit(found, as_json=json, show=lambda: table(columns, rows, least=order, prose=["features"]))
    note_damaged(damaged)


@command(data_commands, "orchestrator data show movielens-100k", name="show")
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
    from models.describe import describe_feature
    from orchestrator.commands.terminal import emit, out
    from orchestrator.data.dataset import open_dataset

    opened = store_at(store)
    manifest = open_dataset(opened, name, version=version).manifest
    if html is not None:
        from orchestrator.reporting.dataset.page import write_page

        write_page(opened, name, version=manifest.version, path=html)

    def show() -> None:
        out.print(f"{manifest.name} version {manifest.version}, {manifest.source.format} from {manifest.source.uri}")
        out.print(f"created {manifest.created}; licence: {manifest.source.licence or 'not stated'}")
        for feature_name, feature in manifest.features.items():
            out.print(f"  {feature_name}: {describe_feature(feature)}", markup=False)
        out.print(f"  target: {manifest.target_text}", markup=False)
        if manifest.order:
            out.print(f"  order of the rows: {_ORDERS[manifest.order]}", markup=False)
        _print_changes(manifest.source)
        _print_additions(manifest.additions)
        _print_splits(manifest)
        if html is not None:
            out.print(f"page: {html}", markup=False)

    emit(manifest, as_json=json, show=show)


def _print_pushed(manifest: Any, *, changed: bool, append: bool) -> None:
    """Say which version there is now, and what has become of the rows."""
    from orchestrator.commands.terminal import out

    if not append:
        out.print(f"{'pushed' if changed else 'unchanged'} {manifest.name} version {manifest.version}")
        _print_changes(manifest.source)
    elif changed:
        out.print(f"appended to {manifest.name} version {manifest.appended_to}: this is version {manifest.version}")
    else:
        out.print(f"unchanged {manifest.name} version {manifest.version}: it has these rows already")
    _print_additions(manifest.additions[-1:] if append else ())
    _print_splits(manifest)


def _print_changes(source: Any, indent: str = "  ") -> None:
    from models.describe import listed
    from orchestrator.commands.terminal import out

    for change in source.changes:
        names = listed(change.names)
        option = f"{change.option}: " if change.option else ""
        out.print(f"{indent}{option}{change.text}" + (f" {names}" if names else ""), markup=False)


def _print_additions(additions: Sequence[Any]) -> None:
    """Say what was appended to what, the last ones of many."""
    from orchestrator.commands.terminal import out

    if len(additions) > _MOST_ADDITIONS:
        out.print(f"  rows were appended {len(additions):,} times; the last {_MOST_ADDITIONS}:", markup=False)
    for addition in additions[-_MOST_ADDITIONS:]:
        rows = ", ".join(f"{rows:,} {split}" for split, rows in addition.rows.items())
        text = f"{rows} rows of {addition.source.uri} appended to version {addition.appended_to}"
        out.print(f"  version {addition.version}: {text}", markup=False)
        _print_changes(addition.source, indent="    ")


def _print_splits(manifest: Any) -> None:
    from orchestrator.commands.printing.tables import table
    from orchestrator.reporting.words import size

    rows = [
        (name, split.rows, len(split.shards), size(sum(s.bytes for s in split.shards)))
        for name, split in manifest.splits.items()
    ]
    table(("split", "rows", "shards", "size"), rows, least=["shards"])


@recipe_commands.callback(invoke_without_command=True)
def recipes(context: typer.Context, json: Json = False) -> None:
    """List the experiments that ship with the package: `orchestrator recipes`."""
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit, next_steps
    from orchestrator.recipe import recipe_names, recipe_title

    if context.invoked_subcommand:
        return
    names = recipe_names()

    def show() -> None:
        table(("recipe", "what it shows"), [(name, recipe_title(name)) for name in names], prose=["what it shows"])
        next_steps(("recipes", "copy", "digits-cnn", "my.yaml"), ("train", "digits-cnn"))

    emit({name: recipe_title(name) for name in names}, as_json=json, show=show)


@command(recipe_commands, "orchestrator recipes copy cifar10-cnn my.yaml", name="copy")
def recipes_copy(name: str, file: Path) -> None:
    """Write a recipe into a file of your own, to change it."""
    from orchestrator.commands.terminal import next_steps
    from orchestrator.configfile import near_miss
    from orchestrator.recipe import recipe_names, recipe_path

    if name not in recipe_names():
        raise ConfigError(f"recipe must be a shipped one, got {name!r}. {near_miss(name, recipe_names())}")
    if file.exists():
        raise ConfigError(f"{file} must be a new file, got one that exists. Name another.")
    file.write_text(recipe_path(name).read_text())
    next_steps(("check", str(file)), ("train", str(file)))
