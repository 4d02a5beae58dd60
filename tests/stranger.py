"""What another account of this machine can do: run as root, becomes `nobody`, tries, and prints as JSON what worked.

python -m tests.stranger  < {"ports": [...], "paths": [...], "sockets": [...], "moves": [...]}
"""

import importlib
import json
import os
import pwd
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import grpc

WAIT_S = 3.0
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # a client's greeting
HTTP1 = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
HELLO = bytes.fromhex("160301002f0100002b0303") + bytes(32) + bytes.fromhex("00000400ff009c0100")  # of TLS
REFUSALS = ("UNAUTHENTICATED", "UNIMPLEMENTED")
HARMLESS = ("/grpc.health.v1.Health/", "/grpc.reflection.")
GENERATED = ("ray.core.generated", "ray.serve.generated")
OBJECTS = [f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")]  # not among those
REQUESTS = [
    ("GET", "/"), ("GET", "/status"), ("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/debug/pprof/"),
    # the store
    ("GET", "/col/delete?collection=orchestrator"), ("GET", "/dir/assign"), ("GET", "/dir/status"),
    ("GET", "/dir/lookup?volumeId=1"), ("GET", "/vol/grow?count=1"), ("GET", "/vol/vacuum"), ("GET", "/cluster/status"),
    ("POST", "/submit"), ("GET", "/ui/index.html"), ("GET", "/1,00"), ("POST", "/1,00"), ("DELETE", "/1,00"),
    ("GET", "/buckets/orchestrator/"), ("PUT", "/buckets/orchestrator/x"),
    ("DELETE", "/buckets/orchestrator?recursive=true"),
    ("POST", "/.tus/buckets/orchestrator/x"), ("GET", "/orchestrator"), ("PUT", "/orchestrator/x"),
    ("DELETE", "/orchestrator"), ("GET", "/admin/"), ("POST", "/api/login"),
    # Ray
    ("GET", "/api/jobs/"), ("POST", "/api/jobs/"), ("GET", "/nodes?view=summary"), ("GET", "/api/v0/actors"),
    ("GET", "/api/serve/applications/"), ("PUT", "/api/serve/applications/"), ("DELETE", "/api/serve/applications/"),
    ("GET", "/logs/"), ("GET", "/api/v0/logs"), ("GET", "/worker/traceback?pid=1"), ("POST", "/api/job_agent/jobs/"),
    ("POST", "/get_or_create_runtime_env"), ("POST", "/delete_runtime_env_if_possible"), ("GET", "/api/actors/kill"),
    ("GET", "/api/local_raylet_healthz"), ("POST", "/api/launch_ray_usage"),
    # our endpoint
    ("GET", "/v2/models/digits"), ("POST", "/v2/models/digits/infer"), ("POST", "/models/digits/predict"),
    ("GET", "/models"), ("GET", "/v2/health/live"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/-/routes"),
]  # fmt: skip


def main() -> None:
    """Become nobody and try."""
    wanted = json.load(sys.stdin)
    methods = [*ray_methods(), *OBJECTS]
    with suppress(Exception):  # what is imported late could not be read afterwards
        answer(1)
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
    report = {
        "ports": {port: probe(port, methods) for port in wanted["ports"]},
        "paths": [path for path in wanted["paths"] if can_enter(path)],
        "sockets": [path for path in wanted["sockets"] if can_connect(path)],
        "moves": [path for path in wanted["moves"] if can_move(path)],
    }
    json.dump(report, sys.stdout)


def ray_methods() -> list[str]:
    """Every method of Ray's services."""
    return [
        f"/{service.full_name}/{method.name}"
        for package in GENERATED
        for path in sorted(Path(next(iter(importlib.import_module(package).__path__))).glob("*_pb2.py"))
        for service in importlib.import_module(f"{package}.{path.stem}").DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def probe(port: int, methods: list[str]) -> dict[str, Any]:
    """What a port is, and what it did for somebody without a key."""
    kind = kind_of(port)
    if kind == "grpc":
        return {"kind": kind, "did": list(calls(port, methods))}
    if kind == "http":
        return {"kind": kind, "did": list(requests(port))}
    return {"kind": kind, "did": []}


def kind_of(port: int) -> str:
    """The protocol that a port speaks: `grpc`, `http`, `tls` or `other`."""
    if exchange(port, HTTP2)[3:4] == b"\x04":
        return "grpc"
    if exchange(port, HELLO)[:1] in (b"\x15", b"\x16"):
        return "tls"
    return "http" if exchange(port, HTTP1).startswith(b"HTTP/1") else "other"


def exchange(port: int, said: bytes) -> bytes:
    """The first bytes that a port answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
            connection.sendall(said)
            return connection.recv(64)
    except OSError:
        return b""


def calls(port: int, methods: list[str]) -> Iterator[str]:
    """Calls that a gRPC port did not refuse."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in methods:
            call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
            try:
                call(b"", timeout=WAIT_S)
                yield f"{method} OK"
            except grpc.RpcError as error:
                if error.code().name not in REFUSALS:
                    yield f"{method} {error.code().name}"


def requests(port: int) -> Iterator[str]:
    """HTTP requests that were not refused; `statistics` stands for the path where counters are all that is told."""
    for method, path in REQUESTS:
        status, body = answer(port, method, path)
        if status < 400:
            yield f"{method} statistics" if body.startswith(b"# HELP") else f"{method} {path}"


def answer(port: int, method: str = "GET", path: str = "/") -> tuple[int, bytes]:
    """The status and the beginning of an answer; 599 where there is none."""
    connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.request(method, path, body=b"{}" if method in ("POST", "PUT") else None)
        found = connection.getresponse()
        return found.status, found.read(64)
    except (OSError, HTTPException):
        return 599, b""
    finally:
        connection.close()


def can_enter(path: str) -> bool:
    """Whether a file can be read or written, or a folder listed or filled."""
    try:
        if Path(path).is_dir():
            list(Path(path).iterdir())
        else:
            Path(path).open("rb").close()
    except OSError:
        pass
    else:
        return True
    return os.access(path, os.W_OK)


def can_connect(path: str) -> bool:
    """Whether a Unix socket takes a connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        try:
            connection.connect(path)
        except OSError:
            return False
        return True


def can_move(path: str) -> bool:
    """Whether a folder can be renamed and another put in its place."""
    try:
        Path(path).rename(f"{path}.moved")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
