"""The `orchestrator` command: the table of its commands, in the order of `--help`.

Commands import what they run when they run: Ray takes two seconds to import and PyTorch two more, `--help` none.
"""

from collections.abc import Mapping
from typing import Any

import typer

from orchestrator.commands import data, jobs, local, report, serve, sweep, train
from orchestrator.commands.app import app, main, run_command_line

__all__ = ["app", "main", "run_command_line"]

PANELS: Mapping[str, tuple[str, ...]] = {
    "First steps": ("demo", "doctor", "recipes", "check"),
    "Data": ("data",),
    "Training": ("train", "resume", "runs", "show", "drill", "gc"),
    "Comparing": ("sweep", "report"),
    "Serving": ("models", "deploy", "rollback", "undeploy", "endpoints", "predict", "batch-predict"),
    "Cluster": ("up", "down", "status", "submit", "jobs", "logs", "stop"),
}


class InOrder(typer.core.TyperGroup):
    """Lists its commands as `PANELS` does."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return the names of the commands."""
        return [name for names in PANELS.values() for name in names if name in self.commands]


def _placed(part: typer.Typer) -> typer.Typer:
    """Put each command of a part under the heading that `PANELS` has for it."""
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    for info in part.registered_commands:
        assert info.callback is not None
        info.rich_help_panel = panels[info.name or info.callback.__name__]
    for group in part.registered_groups:
        group.rich_help_panel = panels[str(group.name)]
    return part


app.info.cls = InOrder
for module in (local, data, train, sweep, report, serve, jobs):
    app.add_typer(_placed(module.commands))
