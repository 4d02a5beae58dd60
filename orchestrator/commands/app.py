"""The command line as a whole: its options, its groups, and how an error ends it."""

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, cast

import typer

from cluster.process.typed import give

if TYPE_CHECKING:
    from cluster.s3.store import Store

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


def _give(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Remember an option for the commands that messages name; what the environment holds need not be repeated."""
    assert parameter.name is not None
    give(f"--{parameter.name}", value if _is_typed(context, parameter.name) else None)
    return value


def _is_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="ORCHESTRATOR_STORE",
        callback=_give,
        help="s3://BUCKET[/PREFIX]; default: the local one.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        callback=_give,
        help="Ray cluster: HOST:PORT, ray://…, http://… or auto. Default: RAY_ADDRESS, or `up`'s.",
    ),
]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, or the name of a recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the file's.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


Command = TypeVar("Command", bound=Callable[..., Any])


def main() -> NoReturn:
    """Run the command line, and end the process."""
    from orchestrator.commands.ending import leave

    try:
        run_command_line()
    except SystemExit as end:
        leave(end)


def run_command_line() -> NoReturn:
    """Run the command line; errors become one clear message and an exit code.

    Raises:
        SystemExit: in any case, at the end.
    """
    from cluster.head_watch import told_by
    from orchestrator.commands.ending import CommandEnd, run_to_end
    from orchestrator.commands.terminal import LogLines, print_traceback, stdout_kept_for_json

    sys.excepthook = print_traceback
    logging.basicConfig(handlers=[LogLines()])
    as_json = "--json" in sys.argv[1:] and "--help" not in sys.argv[1:]
    ending = CommandEnd(as_json=as_json)
    with stdout_kept_for_json() if as_json else nullcontext(), told_by(ending.tell), ending.answering_ctrl_c():
        run_to_end(partial(app, standalone_mode=False), ending)


def command(group: typer.Typer, example: str, *, name: str | None = None) -> Callable[[Command], Command]:
    """Register a command whose help begins with an example."""

    def register(function: Command) -> Command:
        text = function.__doc__ or ""
        short = text.split(". ")[0].split(": ")[0].rstrip(".") + "."
        group.command(name, help=f"`{example}`\n\n{text}", short_help=short)(_stoppable(function))
        return function

    return register


def _stoppable(function: Command) -> Command:
    """Let Ctrl-C say what goes on; typer would end the process without a word."""

    @wraps(function)
    def run(*words: Any, **options: Any) -> Any:
        from orchestrator.commands.ending import stopped

        try:
            return function(*words, **options)
        except KeyboardInterrupt:
            raise stopped() from None

    return cast("Command", run)


def refuse_given(context: typer.Context, *names: str, beside: str) -> None:
    """Refuse options that another option makes meaningless: a setting is never ignored in silence."""
    from cluster.errors import ConfigError

    for name in names:
        if _is_typed(context, name):
            raise ConfigError(f"--{name} must be left out beside {beside}, got it. Remove one of them.")


def store_at(url: str | None) -> "Store":
    """Open the store that `--store` names, or the default one."""
    from cluster.storage import open_store

    return open_store(url)


def print_address(address: str | None) -> None:
    """Say which cluster will be used, and who named it."""
    from cluster.address import resolve_address
    from orchestrator.commands.terminal import note

    found = resolve_address(address)
    note(f"cluster {found.address} (from {found.source})")


def group(text: str | None = None, *, is_a_command: bool = False) -> typer.Typer:
    """Return an empty group of commands.

    Args:
        text: what it is for. Without one, its commands stand on the top level.
        is_a_command: whether the group's name alone does something, too.
    """
    return typer.Typer(help=text, no_args_is_help=not is_a_command, rich_markup_mode="markdown")
