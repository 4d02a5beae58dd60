"""A file of the user's that has the name of one of our packages is named at the first import, in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CURE = "Rename that file or folder, or start from another folder and take it off PYTHONPATH.\n"
STATEMENTS = {
    "orchestrator": "from orchestrator.train import train",
    "models": "import models.config",
    "cluster": "from cluster.storage import open_store",
    "serving": "from serving.client import Client",
}


def python(*words: str, path: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
    )


def in_the_way(folder: Path, name: str) -> Path:
    """Put a file, or a folder with a dot in its place, where Python finds it before ours."""
    file = folder / f"{name}.py" if name in ("models", "serving") else folder / name / "__init__.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("ANSWER = 42\n")
    return file


def message(name: str, file: Path) -> str:
    return f"error: the package `{name}` must be the one of orchestrator at {ROOT / name}, got {file}. {CURE}"


@pytest.mark.parametrize("name", ["models", "cluster", "serving"])
def test_a_package_beside_a_script_or_in_its_folder_is_named(name: str, tmp_path: Path) -> None:
    file = in_the_way(tmp_path, name)
    for statement in (STATEMENTS[other] for other in STATEMENTS if other != name):
        script = tmp_path / "script.py"
        script.write_text(statement)
        found = python(str(script), path=str(ROOT), cwd=ROOT)
        assert (found.returncode, found.stdout, found.stderr) == (2, "", message(name, file)), statement
    found = python("-m", "orchestrator", "runs", path=str(ROOT), cwd=tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (2, "", message(name, file))


def test_a_package_on_the_path_is_named_to_those_who_import_another(tmp_path: Path) -> None:
    file = in_the_way(tmp_path, "orchestrator")
    found = python("-c", "import cluster", path=f"{tmp_path}:{ROOT}", cwd=ROOT.parent)
    assert (found.returncode, found.stderr) == (2, message("orchestrator", file))


def test_one_that_is_imported_already_is_named_too(tmp_path: Path) -> None:
    file = in_the_way(tmp_path, "models")
    words = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import models; sys.path.pop(0); import orchestrator"
    found = python("-c", words, path=str(ROOT), cwd=ROOT.parent)
    assert (found.returncode, found.stderr) == (2, message("models", file))


def test_a_folder_that_is_no_package_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "notes.txt").write_text("mine")
    found = python("-m", "orchestrator", "recipes", path=str(ROOT), cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("name", STATEMENTS)
def test_nothing_is_in_the_way_of_ours(name: str) -> None:
    found = python("-c", f"{STATEMENTS[name]}; print('imported')", path=str(ROOT), cwd=ROOT.parent)
    assert (found.returncode, found.stdout) == (0, "imported\n"), found.stderr
