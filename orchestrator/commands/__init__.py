"""The terminal: every command is a thin view of a function of the package, and only here is typer or rich imported."""
