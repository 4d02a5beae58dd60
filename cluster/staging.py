"""Puts our four packages into one folder, which workers and jobs get as their working directory."""

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.errors import ConfigError
from cluster.state import home

PACKAGES = ("orchestrator", "models", "cluster", "serving")


def stage(files: Mapping[str, bytes] | None = None) -> Path:
    """Return a folder with copies of our packages and of ``files`` beside them, named by its content's hash.

    The same content gives the same folder, so that staging again costs a read of the sources and no upload.

    Args:
        files: Name to content; names without a folder.

    Raises:
        ConfigError: A package of another project stands before ours; see ``check_packages``.
    """
    contents = dict(_sources(check_packages()))
    for name, data in (files or {}).items():
        if "/" in name or name in ("", ".", "..", *PACKAGES):
            raise ConfigError(f"a file beside the packages must have a plain name of its own, got {name!r}.")
        contents[name] = data
    target = home() / "staged" / _digest(contents)
    if not target.exists():
        _write_tree(contents, target)
    return target


def check_packages() -> Path:
    """Return the one folder that all our packages are imported from.

    Raises:
        ConfigError: ``models``, say, is found elsewhere: a package of that name comes first on ``sys.path``.
    """
    expected = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        found = _parent_of(name)
        if found != expected:
            raise ConfigError(
                f"the package {name!r} must be imported from {expected}, got "
                f"{'none' if found is None else found / name}. "
                "Start in another folder, or remove that one from PYTHONPATH."
            )
    return expected


def _parent_of(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]).resolve().parent if places else None


def _sources(root: Path) -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix(), path.read_bytes()


def _digest(contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(contents.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def _write_tree(contents: Mapping[str, bytes], target: Path) -> None:
    """Write beside ``target``, then rename: another process sees all of it or nothing."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=target.parent))
    for name, data in contents.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        fresh.rename(target)
    except OSError:  # another process was faster with the same content
        shutil.rmtree(fresh)
        if not target.exists():
            raise
