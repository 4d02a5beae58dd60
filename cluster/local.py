"""A Ray head and an S3 server on this machine, loopback only, each started, repaired and ended by its own id."""

import contextlib
import fcntl
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TypeVar

import psutil

from cluster.config import StoreSettings
from cluster.head_watch import continued_by
from cluster.machine.disk import (
    STORE_LOG,
    bound_store_log,
    is_stuck_after_full_disk,
    least_store_bytes,
    naming_disk,
    require_room,
)
from cluster.machine.private import private_folder
from cluster.machine.processes import Launches
from cluster.machine.proxies import spare_loopback
from cluster.machine.ray_head import answers, ray_processes, start_ray, stop_ray
from cluster.machine.state import LocalState, RayState, StoreState, home, read_started, read_state, write_state
from cluster.machine.store_server import start_store, stop_store
from cluster.process.scoped import scoped_handler

T = TypeVar("T")

RAY_DISK_BYTES = 256 * 2**20  # for logs and the code of runs; its objects lie in shared memory

log = logging.getLogger(__name__)

_continued_by_up = partial(continued_by, "orchestrator up", what="the start of the local cluster")


def up(
    *, cpus: int | None = None, gpus: int | None = None, with_ray: bool = True, with_store: bool = True
) -> LocalState:
    """Start what is not running of the local Ray head and the local store, and return both.

    Args:
        cpus: Logical CPUs that Ray offers; ``None`` counts the machine's.
        gpus: GPUs that Ray offers; ``None`` counts the machine's.
        with_ray: Start the Ray head.
        with_store: Start the S3 server and create its bucket.

    Raises:
        ClusterError: One of them did not start; the message ends with its last words.
        DiskFullError: A disk has no room for one of them.
    """
    spare_loopback()
    with naming_disk(home(), need="the local cluster"), _locked(), _continued_by_up():
        before = read_state()
        if before.ray and not answers(before.ray):  # dying: `ray start` ends a second after one of its servers
            stop_ray(before.ray)
            before = before.model_copy(update={"ray": None})
        bound_store_log(home() / STORE_LOG)
        if with_store and before.store and is_stuck_after_full_disk(before.store.settings):
            stop_store(before.store)
            before = before.model_copy(update={"store": None})
        _clean_up_after(read_started())
        need_ray, need_store = with_ray and before.ray is None, with_store and before.store is None
        if not need_ray and not need_store:
            return before
        _require_disks(ray=need_ray, store=need_store)
        after = _started(
            before, partial(start_ray, cpus, gpus) if need_ray else None, start_store if need_store else None
        )
        for failure in after.failures:
            _require_disks(ray=need_ray, store=need_store)  # one that filled up meanwhile explains what it broke
            raise failure
        return after.state


def down(*, delete_data: bool = False) -> list[str]:
    """End the local Ray head and store and return what was ended, in words. The stored data stay.

    Args:
        delete_data: Delete the objects of the local store too.
    """
    with _locked(), continued_by("orchestrator down", what="the end of the local cluster"):
        started = read_started()
        state = LocalState(ray=started.ray, store=read_state().store)  # a dead head may have live workers
        _clean_up_after(LocalState(store=started.store))
        with ThreadPoolExecutor(2) as pool:
            ended = [*pool.map(lambda stop: stop(), _stops(state))]
        (home() / "local.json").unlink(missing_ok=True)
        if delete_data and (home() / "store").exists():
            shutil.rmtree(home() / "store")
            ended.append("deleted the stored data")
        return ended


def mend_store(settings: StoreSettings) -> bool:
    """Start the local store anew if it is the one meant and a full disk has left it stuck; return whether that was so.

    Whoever waits for it goes on: its address stays the same.

    Raises:
        ClusterError: It did not start again.
    """
    if not is_stuck_after_full_disk(settings):
        return False
    with _locked():
        state = read_state()
        if state.store is None or state.store.settings.endpoint_url != settings.endpoint_url:
            return False
        if not is_stuck_after_full_disk(settings):  # another process was faster
            return False
        log.warning("the local store starts anew: its disk was full, and has room again")
        stop_store(state.store)
        write_state(state.model_copy(update={"store": start_store()}))
        return True


def status() -> LocalState:
    """Return what is running; a dead half is ``None``."""
    return read_state()


class _Started(NamedTuple):
    """What came of the start of one half or both."""

    state: LocalState
    failures: list[BaseException]


def _started(
    before: LocalState,
    start_ray: Callable[[Launches], RayState] | None,
    start_store: Callable[[Launches], StoreState] | None,
) -> _Started:
    """Start both halves at once, and write down what started, even if the other did not or a person gives up."""
    launches = Launches()
    with _interrupt_gives_up(launches):
        with ThreadPoolExecutor(2) as pool:
            ray = pool.submit(start_ray, launches) if start_ray else None
            store = pool.submit(start_store, launches) if start_store else None
        failures = [error for part in (store, ray) if part is not None and (error := part.exception())]
        state = LocalState(ray=_result(ray) or before.ray, store=_result(store) or before.store)
        write_state(state)
    return _Started(state, failures)


@contextlib.contextmanager
def _interrupt_gives_up(launches: Launches) -> Iterator[None]:
    """Let Ctrl-C give up what starts, for it may not fall between a start and its record; it is raised at the end.

    What answers Ctrl-C otherwise is called too, and may end this process at the second one: then nothing stays.
    """
    before = signal.getsignal(signal.SIGINT)

    def give_up(number: int, frame: FrameType | None) -> None:
        launches.given_up.set()
        with contextlib.suppress(KeyboardInterrupt):
            if callable(before):
                before(number, frame)

    with (
        _continued_by_up(release=launches.kill),
        scoped_handler(signal.SIGINT, give_up),
    ):
        yield
    if launches.given_up.is_set():
        raise KeyboardInterrupt


def _result(part: "Future[T] | None") -> "T | None":
    """Return what has started; ``None`` if it has not."""
    return None if part is None or part.exception() else part.result()


def _require_disks(*, ray: bool, store: bool) -> None:
    if store:
        require_room(home(), least_store_bytes(home()), need="the local store")
    if ray:
        require_room(Path("/tmp"), RAY_DISK_BYTES, need="the files of Ray's session")


def _clean_up_after(started: LocalState) -> None:
    """End and remove what a half that died by itself has left behind."""
    if started.ray is not None and not started.ray.running():
        stop_ray(started.ray)
    if started.store is not None and not started.store.running():
        stop_store(started.store)


def _stops(state: LocalState) -> Iterator[Callable[[], str]]:
    if (store := state.store) is not None:
        yield lambda: stop_store(store)
    if (ray := state.ray) is not None:
        yield lambda: stop_ray(ray)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Let one ``up`` or ``down`` work at a time; create the folder, and refuse one of somebody else's."""
    private_folder(home())
    with (home() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def processes_of(state: LocalState) -> list[psutil.Process]:
    """Return the live processes of a local cluster."""
    server = state.store.process.find() if state.store else None
    return [*(ray_processes(state.ray) if state.ray else []), *([server] if server else [])]
