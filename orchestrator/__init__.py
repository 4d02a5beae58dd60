"""Drives everything: configuration, data, training, sweeps, deployment, and the command line."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "cluster" / "machine" / "ours.py"))
