"""`python -m orchestrator`: the same as the `orchestrator` command; jobs on a cluster begin here."""

from orchestrator.cli import main

main()
