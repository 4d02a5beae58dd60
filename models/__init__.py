"""The networks and their techniques in plain PyTorch: no Ray, no object storage."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "cluster" / "machine" / "ours.py"))
