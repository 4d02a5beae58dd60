"""The packages depend on each other in one direction, and what must start fast imports little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "models": {"models"},
    "cluster": {"cluster"},
    "serving": {"serving", "models", "cluster"},
    "orchestrator": {"orchestrator", "serving", "models", "cluster"},
}
FORBIDDEN = {"models": {"ray", "boto3", "pyarrow"}, "cluster": {"torch"}}


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        ours = imports_of(file) & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{file} imports {ours - ALLOWED[package]}"
        assert not imports_of(file) & FORBIDDEN.get(package, set()), file


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_is_a_docstring(package: str) -> None:
    for file in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(file.read_text()).body
        assert len(body) == 1, file
        assert isinstance(body[0], ast.Expr), file


@pytest.mark.parametrize(
    "statement",
    [
        "import models.config, models.features, cluster.config, orchestrator.config",
        "from orchestrator.configfile import load_experiment; load_experiment('digits-cnn')",
        "import sys; sys.argv = ['orchestrator', '--help']; import orchestrator.cli",
    ],
)
def test_configuration_and_help_need_neither_ray_nor_torch(statement: str) -> None:
    heavy = "import sys; print(sorted({'ray', 'torch', 'boto3', 'pyarrow', 'numpy'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{heavy}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"
