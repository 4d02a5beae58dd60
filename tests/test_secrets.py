"""Secrets stay where they are used: none is found in what a whole session of work leaves behind or shows."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
import requests

from cluster import local
from cluster.machine.ray_head import ray_environment
from cluster.machine.state import LocalState
from cluster.storage import open_store
from orchestrator.runs.record import list_runs
from serving.client import Client
from tests.web_server import Quiet, listening

CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canary-aws-secret-8b1f",
    "AWS_SESSION_TOKEN": "canary-aws-session-52c7",
    "ORCHESTRATOR_ENDPOINT_TOKEN": "canary-endpoint-94ae",
    "RAY_AUTH_TOKEN": "canary-ray-token-d03b",
    "HF_TOKEN": "canary-hugging-face-617d",
    "WANDB_API_KEY": "canary-api-key-2e90",
}
"""In the environment in which the cluster is started."""
PASSWORD, SIGNATURE = "canary-password-77aa", "canary-signature-c4d5"
"""In the URL that is pushed."""
KEEPERS = {"credentials", "ray_token", "endpoint_token", "s3.json", "security.toml", "filer.toml"}
"""Files that are there to hold a secret, and that nobody else may read."""
EXPERIMENT = """
data: {name: signed}
model: {type: mlp, hidden: [4]}
train: {epochs: 2, batch_size: 16, learning_rate: 0.1}
scaling: {workers: 1, cpus_per_worker: 0.5}
"""
SWEEP = "sweep: {seeds: 2, vary: {techniques.activation: [tanh, relu]}}\n"
ROWS = "a,b,label\n" + "".join(f"{i},{i % 7},{'xy'[i % 2]}\n" for i in range(120))


class Handler(Quiet, BaseHTTPRequestHandler):
    """Hands out one table."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/csv")
        self.end_headers()
        self.wfile.write(ROWS.encode())


@pytest.fixture
def signed_url() -> Iterator[str]:
    with listening(Handler) as httpd:
        yield f"http://me:{PASSWORD}@127.0.0.1:{httpd.server_port}/table.csv?X-Amz-Signature={SIGNATURE}"


class Session:
    """A person's work on a cluster of its own, and everything that the commands printed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.printed = folder, ""

    def run(self, *words: str, fails: bool = False, **environment: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**os.environ, **environment},
        )
        self.printed += done.stdout + done.stderr
        assert (done.returncode != 0) is fails, done.stderr


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))
    yield Session(tmp_path)
    local.down()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_eight_planted_secrets_and_our_own_are_found_nowhere(session: Session, signed_url: str) -> None:
    (session.folder / "train.yaml").write_text(EXPERIMENT)
    (session.folder / "sweep.yaml").write_text(EXPERIMENT + SWEEP)
    token = {"ORCHESTRATOR_ENDPOINT_TOKEN": CANARIES["ORCHESTRATOR_ENDPOINT_TOKEN"]}
    session.run("up", "--cpus", "3", **CANARIES)
    session.run("data", "push", signed_url, "--name", "signed")
    session.run("data", "push", signed_url.replace("127.0.0.1", "no-such-host.invalid"), fails=True)
    session.run("data", "show", "signed", "--html", "signed.html")
    session.run("train", "train.yaml", **CANARIES_OF_A_DRIVER)
    session.run("train", "train.yaml", "train.learning_rate=1e30", fails=True)  # a crash: its loss is no number
    session.run("sweep", "sweep.yaml")
    session.run("models", "promote", finished_run(), "signed")
    session.run("deploy", "signed", "--port", "0", **token)
    session.run("predict", "signed", "a=3", "b=2", **token)

    state = local.status()
    secrets = {**CANARIES, "password": PASSWORD, "signature": SIGNATURE, **own_secrets(session.folder / "home")}
    seen = {
        **processes(state),
        **files(Path(state.ray.temp_dir)),
        **files(session.folder),
        **objects(),
        **answers(state, CANARIES["ORCHESTRATOR_ENDPOINT_TOKEN"]),
        "printed": session.printed.encode(),
    }
    assert len(seen) > 100  # it has looked
    found = [(name, place) for place, data in seen.items() for name, secret in secrets.items() if holds(data, secret)]
    assert found == []


CANARIES_OF_A_DRIVER = {name: CANARIES[name] for name in ("HF_TOKEN", "WANDB_API_KEY", "ORCHESTRATOR_ENDPOINT_TOKEN")}
"""In the environment of a command; the AWS keys would be the ones to open the store with."""


def finished_run() -> str:
    return next(record.run for record in list_runs(open_store()) if record.state == "finished" and not record.sweep)


def holds(data: bytes, secret: str) -> bool:
    """Whether the secret is there, as it is or in a form that hides it from nobody."""
    plain = secret.encode()
    shifted = (base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 : -4] for shift in range(3))
    return any(form in data for form in (plain, plain.hex().encode(), *shifted))


def own_secrets(home: Path) -> dict[str, str]:
    """The store's secret key and the cluster's token, which `up` made."""
    key = next(line for line in (home / "credentials").read_text().splitlines() if "secret" in line)
    return {"store key": key.partition(" = ")[2], "ray token": (home / "ray_token").read_text()}


def processes(state: LocalState) -> dict[str, bytes]:
    found = {}
    for process in local.processes_of(state):
        for kind in ("environ", "cmdline"):
            try:
                found[f"{kind} of {process.pid}"] = Path(f"/proc/{process.pid}/{kind}").read_bytes()
            except (OSError, psutil.Error):
                continue  # it has just ended
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Every file but those that are there to hold a secret, which only their owner can read."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name in KEEPERS:
            assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"
        elif path.is_file() and not path.is_socket():
            found[str(path)] = path.read_bytes()
    return found


def objects() -> dict[str, bytes]:
    store = open_store()
    return {f"object {info.key}": store.read(info.key) for info in store.list()}


def answers(state: LocalState, token: str) -> dict[str, bytes]:
    """What Ray's dashboard and the gateway say to those who may ask."""
    assert state.ray is not None
    header = {"Authorization": f"Bearer {Path(state.ray.token_file).read_text()}"}
    paths = ("/api/jobs/", "/api/cluster_status", "/nodes?view=summary", "/api/v0/actors", "/api/serve/applications/")
    found = {
        path: requests.get(state.ray.dashboard_url + path, headers=header, timeout=30).content
        for path in (*paths, "/api/v0/workers?detail=1", "/api/v0/runtime_envs?detail=1")
    }
    gateway = Client().url
    for path in ("/", "/models", "/docs", "/v2/models/signed"):
        found[path] = requests.get(gateway + path, headers={"Authorization": f"Bearer {token}"}, timeout=30).content
    return found


@pytest.mark.parametrize("before", [b"", b"a", b"ab", b"abc"])
def test_a_secret_is_found_in_each_of_its_forms(before: bytes) -> None:
    text = before + PASSWORD.encode() + b" and more"
    for form in (text, text.hex().encode(), base64.b64encode(text)):
        assert holds(form, PASSWORD)
        assert not holds(form, SIGNATURE)


@pytest.mark.parametrize("name", [*CANARIES, "MY_PASSWORD", "DB_PASSWD", "SIGNING_PRIVATE_KEY", "openai_api_key"])
def test_what_looks_like_a_secret_is_not_inherited_by_ray(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "canary")
    monkeypatch.setenv(f"{name}_FILE", "/a/path")
    environment = ray_environment(Path("/token"), "/tmp/x")
    assert name not in environment
    assert environment[f"{name}_FILE"] == "/a/path"


def test_a_variable_that_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "TOKENIZERS_PARALLELISM", "HTTPS_PROXY", "SECRETARY"):
        monkeypatch.setenv(name, "value")
        assert ray_environment(Path("/token"), "/tmp/x")[name] == "value"
