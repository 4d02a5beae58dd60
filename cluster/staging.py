"""Puts our four packages into one folder, which workers and jobs get as their working directory."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cluster.errors import ConfigError
from cluster.machine.ours import HERE, OURS, in_the_way
from cluster.machine.private import private_folder
from cluster.machine.state import home


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
        if "/" in name or name in ("", ".", "..", *OURS):
            raise ConfigError(f"a file beside the packages must have a plain name of its own, got {name!r}.")
        contents[name] = data
    target = home() / "staged" / _digest(contents)[:16]
    if not target.exists():
        _write_tree(contents, target)
    return target


def packages_sha256() -> str:
    """SHA-256 over the names and contents of all files of our packages; nothing is written.

    Raises:
        ConfigError: see ``check_packages``.
    """
    return _digest(dict(_sources(check_packages())))


def content_check() -> Callable[[], None]:
    """Return a function that refuses a working directory whose packages differ from ours.

    Ray runs it in each new worker before anything of the working directory is imported. It is a closure over plain
    values and imports only the standard library, so that it travels by value: were it imported over there, whoever
    replaced the packages would have replaced the check.
    """
    packages, expected = OURS, packages_sha256()

    def check() -> None:
        import hashlib
        from pathlib import Path

        folder, digest = Path.cwd(), hashlib.sha256()
        paths = (path for package in packages for path in (folder / package).rglob("*"))
        files = (path for path in paths if path.is_file() and "__pycache__" not in path.parts)
        for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
            data = path.read_bytes()
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        if digest.hexdigest() != expected:
            raise RuntimeError(
                f"the packages in {folder} must be those that the driver sent, got other bytes. Somebody or something "
                "changed them: run `orchestrator down`, then `orchestrator up`."
            )

    return check


def check_packages() -> Path:
    """Return the one folder that all our packages are imported from.

    Raises:
        ConfigError: ``models``, say, is found elsewhere: a package of that name comes first on ``sys.path``.
    """
    found = in_the_way(HERE)
    if found is not None:
        name, file = found
        raise ConfigError(
            f"the package {name!r} must be imported from {HERE}, got {file}. Start in another folder, or remove that "
            "one from PYTHONPATH."
        )
    return HERE


def _sources(root: Path) -> Iterator[tuple[str, bytes]]:
    for package in OURS:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix(), path.read_bytes()


def _digest(contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(contents.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _write_tree(contents: Mapping[str, bytes], target: Path) -> None:
    """Write beside ``target``, then rename: another process sees all of it or nothing."""
    private_folder(target.parent)
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
