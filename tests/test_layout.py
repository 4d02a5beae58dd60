"""Which line runs where: packages and rooms depend on each other in one direction, and each names only what it may.

An import counts wherever it stands: on top, in a function, under TYPE_CHECKING, and as a module's name in a string.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "cluster", "serving", "orchestrator")
ALLOWED = {
    "models": {"models"},
    "cluster": {"cluster"},
    "serving": {"serving", "models", "cluster"},
    "orchestrator": {"orchestrator", "serving", "models", "cluster"},
}
FORBIDDEN = {"models": {"ray", "boto3", "pyarrow"}, "cluster": {"torch"}}
LAYERS = (  # of orchestrator/, the lowest first; neighbours in one layer do not know each other
    {"config", "recipe", "document"},
    {"configfile"},
    {"evidence", "data", "runs"},
    {"training", "predicting"},
    {"driving"},
    {"train", "submit", "batch_predict"},
    {"sweeping", "searching"},
    {"reporting"},
    {"sweep", "search", "drill"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
NEVER_NAMES = {
    "orchestrator/training/": {"ray"},
    "orchestrator/evidence/": {"ray", "torch"},
    "orchestrator/runs/": {"ray"},
    "orchestrator/driving/": {"torch"},
    "orchestrator/sweeping/record.py": {"torch", "ray"},
    "orchestrator/sweeping/plan.py": {"torch", "ray"},
    "orchestrator/sweeping/tasks.py": {"torch", "ray"},
    "orchestrator/searching/record.py": {"torch", "ray"},
    "orchestrator/searching/plan.py": {"torch", "ray"},
    "orchestrator/predicting/record.py": {"torch", "ray"},
    "orchestrator/reporting/": {"ray", "torch"},
}
TERMINAL = ("orchestrator/commands/", "orchestrator/cli.py")
PRIVATE = re.compile(r"\b(_private|_raylet|_internal)\b|\bcore\.generated\b")
MAY_NAME_PRIVATE = {
    "cluster/nodes.py",
    "cluster/session.py",
    "orchestrator/driving/ray_train.py",
    "orchestrator/driving/worker_process.py",
    "serving/http/sockets.py",
}

# What is larger than it should be, with the reason. These lists may only shrink.
LARGE_FOLDERS = {
    "orchestrator/data/sources": "a file for each format that people have",
}
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS = {
    "orchestrator/batch_predict.py: batch_predict": "a verb's options",
    "orchestrator/data/push.py: push": "a verb's options",
}
COMMON_NAMES: dict[str, str] = {}


@cache
def files() -> tuple[Path, ...]:
    return tuple(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))


@cache
def tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text())
    except SystemError:  # CPython 3.11 counts the depth for all threads at once: one left by another test parsed, too
        return ast.parse(file.read_text())


def path(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def module(file: Path) -> str:
    return path(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


@cache
def modules() -> frozenset[str]:
    return frozenset(map(module, files()))


@cache
def imports(file: Path) -> frozenset[str]:
    """Full names of the modules that a file imports or names in a string."""
    found: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path(file)}: imports must be absolute"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (below & modules()) or {str(node.module)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
            is_ours = node.value in modules() and "." in node.value
            if is_ours or node.value in asked_for(file):
                found.add(node.value)
    return frozenset(found - {module(file)})


@cache
def asked_for(file: Path) -> frozenset[str]:
    """Strings that are handed to a function that imports, and so are not words such as the name of a device."""
    calls = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]
    imported = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] in ("import_module", "imported")]
    return frozenset(a.value for call in imported for a in call.args if isinstance(a, ast.Constant))


def tops(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def room(name: str) -> str:
    """The part of orchestrator/ that a module belongs to: its folder, or itself."""
    return name.split(".")[1] if "." in name else ""


def functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path(file)}: {node.name}", node


def lines_of_code(file: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, comments and blank lines."""
    text = file.read_text().splitlines()
    start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno - 1
    assert start is not None
    signature = 0 if start == node.lineno - 1 else node.body[0].lineno - node.lineno
    if is_command(node):  # its signature is the table of its options
        start, signature = max(start, node.body[0].lineno - 1), 0
    body = [line.strip() for line in text[start : node.end_lineno]]
    return signature + sum(bool(line) and not line.startswith("#") for line in body)


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function's parameters are the options of a command."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


# ------------------------------------------------------------------------------------------------- one direction


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        ours = tops(file) & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path(file)} imports {ours - ALLOWED[package]}"
        assert not tops(file) & FORBIDDEN.get(package, set()), path(file)


def test_a_room_imports_only_lower_layers() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    rooms = {room(name) for name in modules() if name.startswith("orchestrator.")}
    assert rooms == set(level), "a new room needs its place in LAYERS"
    upward = [
        f"{module(file)} -> {name}"
        for file in files()
        for name in sorted(imports(file))
        if (here := room(module(file))) in level and module(file).startswith("orchestrator.")
        if name.startswith("orchestrator.") and room(name) != here and level[room(name)] >= level[here]
    ]
    assert upward == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {module(file): {name for name in imports(file) if name in modules()} for file in files()}
    assert circles(graph) == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """What is left of a graph when whatever imports nothing, or is imported by nothing, is taken away repeatedly."""
    left = dict(graph)
    while True:
        used = set().union(*left.values()) if left else set()
        ends = [name for name, names in left.items() if not names & set(left) or name not in used]
        if not ends:
            return [[name, *sorted(names & set(left))] for name, names in sorted(left.items())]
        for name in ends:
            del left[name]
        left = {name: names & set(left) for name, names in left.items()}


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}, [["b", "c"], ["c", "b"]]),
    ],
)
def test_a_circle_is_found(graph: dict[str, set[str]], found: list[list[str]]) -> None:
    assert circles(graph) == found


# ----------------------------------------------------------------------------------------------- who may name what


@pytest.mark.parametrize("place", NEVER_NAMES)
def test_a_room_names_only_what_it_may(place: str) -> None:
    here = [file for file in files() if path(file).startswith(place)]
    assert here, f"{place} has moved"
    assert [path(file) for file in here if tops(file) & NEVER_NAMES[place]] == []


def test_only_commands_know_the_terminal() -> None:
    found = [path(f) for f in files() if tops(f) & {"typer", "rich"} and not path(f).startswith(TERMINAL)]
    assert found == []


def test_private_names_of_ray_stay_in_the_files_that_are_known_for_it() -> None:
    naming = {path(file) for file in files() if any(PRIVATE.search(name) for name in words(file))}
    assert naming == MAY_NAME_PRIVATE


def words(file: Path) -> Iterator[str]:
    """Modules that a file imports, and the attributes that it names."""
    yield from imports(file)
    yield from (node.attr for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute))


def test_modules_are_imported_by_name_in_one_place() -> None:
    assert [path(file) for file in files() if "import_module" in words(file)] == ["cluster/lazy.py"]


# ------------------------------------------------------------------------------------------------------------ sizes


def test_a_folder_can_be_seen_at_a_glance() -> None:
    counts = Counter(path(file).rpartition("/")[0] for file in files() if not file.stem.startswith("__"))
    assert {folder for folder, count in counts.items() if count > 12} == set(LARGE_FOLDERS)


def test_a_module_can_be_read_in_one_go() -> None:
    assert {path(file) for file in files() if len(file.read_text().splitlines()) > 400} == set(LONG_MODULES)


def test_a_function_fits_a_screen() -> None:
    assert {name for f in files() for name, node in functions(f) if lines_of_code(f, node) > 40} == set(LONG_FUNCTIONS)


def test_a_function_has_few_parameters() -> None:
    found = set()
    for file in files():
        for name, node in functions(file):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if len([a for a in arguments if a.arg not in ("self", "cls")]) > 8 and not is_command(node):
                found.add(name)
    assert found == set(MANY_PARAMETERS)


def test_a_class_name_exists_once() -> None:
    counts = Counter(node.name for file in files() for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef))
    assert {name for name, count in counts.items() if count > 1} == set(COMMON_NAMES)


def test_the_exceptions_do_not_grow() -> None:
    lists = (LARGE_FOLDERS, LONG_MODULES, LONG_FUNCTIONS, MANY_PARAMETERS, COMMON_NAMES)
    assert sum(map(len, lists)) <= 10
    assert all(reason for reasons in lists for reason in reasons.values())


FIRST_IMPORT = """
from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "cluster" / "machine" / "ours.py"))
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_a_docstring_and_at_the_top_a_look_at_whose_packages_these_are(package: str) -> None:
    for file in (ROOT / package).rglob("__init__.py"):
        assert ast.get_docstring(tree(file)), path(file)
        look = FIRST_IMPORT if file.parent.name == package else ""
        assert ast.unparse(tree(file).body[1:]) == ast.unparse(ast.parse(look)), path(file)


def test_the_top_level_is_verbs() -> None:
    verbs = [f.stem for f in (ROOT / "orchestrator").glob("*.py") if not f.stem.startswith("__")]
    assert set(verbs) == {
        "cli",
        "config",
        "configfile",
        "document",
        "recipe",
        "train",
        "sweep",
        "search",
        "drill",
        "submit",
        "batch_predict",
    }
    assert all(layer.isdisjoint(after) for layer, after in pairwise(LAYERS))


# ------------------------------------------------------------------------------------------------- what starts fast


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
