"""Looks at everything a run needs on this machine, on the cluster and in the store: one line and one cure each."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import psutil
from packaging.requirements import Requirement

from cluster.address import resolve_address
from cluster.errors import OrchestratorError, StoreError
from cluster.machine.disk import full_store_error
from cluster.machine.exposure import CURE, describe_danger
from cluster.machine.private import CACHE_VARIABLE, HOME_VARIABLE, refused_error
from cluster.machine.processes import is_free, listening_at
from cluster.machine.ray_head import ray_processes
from cluster.machine.state import home, read_state
from cluster.process.typed import typed
from cluster.s3.store import Store
from cluster.s3.urls import masked
from cluster.session import check_reachable, client_environment
from cluster.storage import open_store

OLDEST_PYTHON = (3, 11)
NEED_DISK_GIB = 5.0  # Ray starts to refuse work when a disk is 95 % full; a small one is so soon
NEED_MEMORY_GIB = 2.0  # a Ray head takes about 0.6 GiB before any work, a worker with torch about 0.4
SERVE_PORT = 8000
HERE = Path(__file__).resolve()
TESTED = (HERE.parents[2] / "constraints.txt", HERE.parents[1] / "constraints.txt")  # of a checkout, of a wheel
NAMED = ("ray", "torch", "pyarrow", "boto3")


@dataclass(frozen=True)
class Check:
    """What one look has found; ``cure`` is empty where nothing is wrong."""

    name: str
    ok: bool
    detail: str
    cure: str = ""


def run_checks(*, address: str | None = None, store_url: str | None = None) -> list[Check]:
    """Return the checks, in the order in which a newcomer would meet the problems; none of them raises.

    Args:
        address: See ``cluster.address.resolve_address``.
        store_url: See ``cluster.storage.open_store``.
    """
    looks: dict[str, Callable[[], Check]] = {
        "python": partial(check_python, sys.version_info[:3]),
        "packages": check_packages,
        "torch": check_torch,
        "memory": lambda: check_memory(psutil.virtual_memory().available / 2**30),
        "home": lambda: check_home(home(), os.environ.get(CACHE_VARIABLE)),
        "disk": lambda: check_disk(shutil.disk_usage(_existing(home())).free / 2**30, home()),
        "ports": check_ports,
        "ray": partial(check_ray, address),
        "store": partial(check_store, store_url),
    }
    return [_guarded(name, look) for name, look in looks.items()]


def check_servers(*, address: str | None = None, store_url: str | None = None) -> list[Check]:
    """Return the checks of the two servers alone; see `run_checks`."""
    looks: dict[str, Callable[[], Check]] = {
        "ray": partial(check_ray, address),
        "store": partial(check_store, store_url),
    }
    return [_guarded(name, look) for name, look in looks.items()]


def check_python(version: tuple[int, ...]) -> Check:
    """Whether the interpreter is new enough."""
    found = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Check("python", False, found, f"Install Python {oldest} or newer and create the environment anew.")
    return Check("python", True, f"{found} on {platform.system()} {platform.machine()}")


def check_packages(constraints: Path | None = None) -> Check:
    """Whether what is installed satisfies our requirements; a difference from the tested versions is only told.

    Args:
        constraints: File of tested versions; ``None`` means the one of this release.
    """
    wrong = [text for text in map(unmet, importlib.metadata.requires("orchestrator") or ()) if text]
    if wrong:
        return Check(
            "packages", False, "; ".join(wrong), "Run `pip install --upgrade orchestrator -c constraints.txt`."
        )
    tested = _lines(constraints or next(path for path in TESTED if path.exists()))
    named = ", ".join(line.replace("==", " ") for line in tested if line.partition("==")[0] in NAMED)
    other = [text for text in map(unmet, tested) if text and "not installed" not in text]
    detail = ("all requirements met", f"tested with {named}", *(f"tested with another: {text}" for text in other))
    return Check("packages", True, "; ".join(detail))


def unmet(requirement: str) -> str | None:
    """Return what is wrong with an installed package, or ``None``; requirements of extras do not count."""
    parsed = Requirement(requirement)
    if parsed.marker is not None and not parsed.marker.evaluate({"extra": ""}):
        return None
    try:
        found = importlib.metadata.version(parsed.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{parsed.name} is not installed"
    # A local part (2.13.0+cpu) says how it was built, not which version it is.
    wanted = parsed.specifier
    return None if wanted.contains(found.split("+")[0], prereleases=True) else f"{parsed.name} {found}, not {wanted}"


def check_torch() -> Check:
    """Which device torch will train on, and whether it can in bfloat16."""
    import torch

    if not torch.cuda.is_available():
        return Check("torch", True, f"{torch.__version__}, CPU with {torch.get_num_threads()} threads; no GPU")
    bf16 = "with bf16" if torch.cuda.is_bf16_supported() else "without bf16"
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return Check("torch", True, f"{torch.__version__}, CUDA {torch.version.cuda} {bf16}: {names}")


def check_memory(available_gib: float) -> Check:
    """Whether a Ray head and two workers fit."""
    detail = f"{available_gib:.1f} GiB available"
    cure = f"Free memory: a local cluster needs {NEED_MEMORY_GIB:.0f} GiB."
    return Check("memory", True, detail) if available_gib >= NEED_MEMORY_GIB else Check("memory", False, detail, cure)


def check_home(place: Path, cache: str | None) -> Check:
    """Whether our folders are, or can be made, folders that this account can write; nothing is written."""
    for folder, variable in ((place, HOME_VARIABLE), *([(Path(cache), CACHE_VARIABLE)] if cache else [])):
        found = _existing(folder)
        if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
            what = "a folder that this account cannot write" if found.is_dir() else "no folder"
            wrong = f"{folder} cannot be written: {found} is {what}"
            return Check("home", False, wrong, f"Set {variable} to another.")
    return Check("home", True, f"{place} is ours to write")


def check_disk(free_gib: float, place: Path) -> Check:
    """Whether the local store has room."""
    detail = f"{free_gib:.1f} GiB free at {place}"
    cure = f"Free {NEED_DISK_GIB:.0f} GiB, or set ORCHESTRATOR_HOME to a larger disk."
    return Check("disk", True, detail) if free_gib >= NEED_DISK_GIB else Check("disk", False, detail, cure)


def check_ports() -> Check:
    """Whether the port that endpoints get by default is free, or Ray Serve's own; all others are chosen."""
    if is_free(SERVE_PORT):
        return Check("ports", True, f"{SERVE_PORT} is free for endpoints; all others are chosen at start")
    ours = read_state().ray
    listener = listening_at(SERVE_PORT, ray_processes(ours) if ours else [])
    if listener is not None:
        return Check("ports", True, f"{SERVE_PORT} serves the endpoints of the local cluster (process {listener.pid})")
    return Check(
        "ports",
        False,
        f"{SERVE_PORT} is taken by another program",
        f"Name another port, as `{typed('deploy', 'NAME', '--port', '0')}` does, or end the program that has it.",
    )


def check_ray(address: str | None) -> Check:
    """Whether the cluster answers, takes our token, runs our version, and is closed to everybody else."""
    found = resolve_address(address)
    with client_environment(found):
        check_reachable(found)
    if (danger := describe_danger(found)) is not None:
        return Check("ray", False, danger, CURE)
    return Check("ray", True, f"{importlib.metadata.version('ray')} at {found.address} (from {found.source})")


def check_store(url: str | None) -> Check:
    """Whether a small object can be written, read and deleted with boto3, and with Arrow too."""
    store = open_store(url)
    store.check()
    _check_arrow(store)
    place = store.settings.endpoint_url or "AWS"
    return Check("store", True, f"{store.settings.url} at {place}: wrote and read with boto3 and pyarrow")


def _check_arrow(store: Store) -> None:
    key, data = f".check-arrow-{uuid4().hex}", b"orchestrator"
    files = store.arrow_filesystem()
    try:
        with files.open_output_stream(store.arrow_path(key)) as stream:
            stream.write(data)
    except OSError as error:
        full = full_store_error(store.settings)
        raise full or StoreError(
            f"{store.settings.url} must take what pyarrow writes, got {masked(str(error))}."
        ) from error
    try:
        with files.open_input_stream(store.arrow_path(key)) as stream:
            found = stream.read()
        if found != data or store.read(key) != data:
            raise StoreError(f"{store.settings.url} must return to both clients what pyarrow wrote, got other bytes.")
    finally:
        store.delete([key])


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """Turn our own errors into a failed check; their last sentence is the cure."""
    try:
        return look()
    except OrchestratorError as error:
        return Check(name, False, *split_cure(str(error)))
    except OSError as error:
        if (refused := refused_error(error)) is None:
            raise
        return Check(name, False, *split_cure(str(refused)))


def split_cure(message: str) -> tuple[str, str]:
    """Split a message of our grammar into what is wrong and the cure."""
    wrong, separator, cure = message.partition(". ")
    return (f"{wrong}.", cure) if separator else (message, "See the message.")


def _existing(path: Path) -> Path:
    return path if os.access(path, os.F_OK) else _existing(path.parent)  # no folder without entry is looked into


def _lines(path: Path) -> list[str]:
    texts = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [text for text in texts if text and not text.startswith("-")]
