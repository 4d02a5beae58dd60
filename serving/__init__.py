"""The registry of trained models, the Serve application that answers with them, and its client."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "cluster" / "machine" / "ours.py"))
