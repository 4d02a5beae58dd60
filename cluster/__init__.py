"""Where work and bytes live: Ray sessions, the object store, the local cluster. No torch."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "cluster" / "machine" / "ours.py"))
