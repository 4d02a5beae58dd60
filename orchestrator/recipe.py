"""Experiments that ship with the package, one YAML file each."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the shipped recipes, in alphabetical order."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Where the recipe's file lies; it must be one of `recipe_names()`."""
    return _FOLDER / f"{name}.yaml"


def recipe_title(name: str) -> str:
    """The first line of the recipe's comment: what it shows."""
    return recipe_path(name).read_text().splitlines()[0].removeprefix("#").strip()
