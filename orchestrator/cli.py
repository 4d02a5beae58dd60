"""The `orchestrator` command: the table of its groups of commands, in the order of `--help`.

Commands import what they run when they run: Ray takes two seconds to import and PyTorch two more, `--help` none.
"""

from orchestrator.commands import data, jobs, local, report, serve, sweep, train
from orchestrator.commands.app import app, main

__all__ = ["app", "main"]

for part in (local, data, train, sweep, report, serve, jobs):
    app.add_typer(part.commands)
