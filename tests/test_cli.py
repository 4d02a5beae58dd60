"""The command line: exit codes, one clear line for each mistake, JSON on stdout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cluster.machine.state import StoreState
from cluster.s3.store import Store
from cluster.session import store_environment
from orchestrator.cli import PANELS, app
from orchestrator.commands.terminal import emit, stdout_kept_for_json
from orchestrator.data.push import push
from orchestrator.runs.checkpoint import list_checkpoints
from tests.example_runs import write_run

ROOT = Path(__file__).parents[1]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )


def commands(group: typer.Typer = app, *before: str) -> list[list[str]]:
    """The words of every command; a group without a name adds none."""
    found = [[*before, c.name or c.callback.__name__] for c in group.registered_commands if c.callback]
    for part in group.registered_groups:
        assert part.typer_instance
        found += commands(part.typer_instance, *before, *([part.name] if isinstance(part.name, str) else []))
    return found


def test_with_json_whatever_a_library_prints_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with stdout_kept_for_json():
        print("(raylet) A worker died or was killed")
        emit({"state": "finished"}, as_json=True, show=lambda: None)
    print("later")
    found = capsys.readouterr()
    assert found.out == '{"state": "finished"}\nlater\n'
    assert found.err == "(raylet) A worker died or was killed\n"


def test_help_groups_the_commands_from_first_steps_to_the_cluster() -> None:
    found = run("--help", COLUMNS="100").stdout
    panels = [line.split("─ ")[1].split(" ─")[0] for line in found.splitlines() if line.startswith("╭─ ")]
    assert panels == ["Options", *PANELS]
    assert {words[0] for words in commands()} == {name for names in PANELS.values() for name in names}


def test_every_command_shows_an_example_first() -> None:
    for words in commands():
        found = run(*words, "--help")
        assert found.returncode == 0, words
        lines = [line.strip() for line in found.stdout.splitlines() if line.strip()]
        assert lines[0].startswith("Usage:")
        example = next(line for line in lines[1:] if not line.startswith("["))
        assert example.startswith(f"orchestrator {' '.join(words)}"), (words, example)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["check", "digits-cnn", "train.epoch=3"], 2, "command line: train.epoch must be a known setting, got 3."),
        (["check", "nothing.yaml"], 2, "nothing.yaml must be a YAML file or a recipe, got neither."),
        (["train", "digits-cnn", "train.epochs=x"], 2, "train.epochs must be a valid integer"),
        (["train", "china-fm", "techniques.activation=tanh"], 2, "techniques.activation must be left out"),
        (["train", "digits-cnn"], 2, "a Ray cluster must be running, got none. Run `orchestrator up`"),
        (["up", "--redeploy", "--no-ray"], 2, "--redeploy must have the local Ray head, got --no-ray. Use"),
        (["train", "digits-cnn", "--address", "nonsense"], 2, "the cluster's address must be HOST:PORT"),
        (["sweep"], 2, "sweep must have either a CONFIG or --resume SWEEP"),
        (["sweep", "digits-cnn", "--dry-run"], 2, "sweep must be given, got nothing."),
        (["recipes", "copy", "digit-cnn", "x.yaml"], 2, "Did you mean digits-cnn?"),
        (["submit", "walk", "digits-cnn"], 2, "submit must be given train or sweep, got 'walk'."),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["train"], 2, "Missing argument 'CONFIG'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_its_exit_code(
    words: list[str], code: int, message: str, store_server: StoreState
) -> None:
    found = run(
        *words,
        ORCHESTRATOR_HOME=str(Path(os.environ["ORCHESTRATOR_HOME"]) / "elsewhere"),
        ORCHESTRATOR_STORE="s3://nowhere",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        COLUMNS="200",
    )
    assert message in found.stderr, found.stderr
    assert "Traceback" not in found.stderr
    assert found.returncode == code


def test_an_error_is_json_where_json_was_asked_for() -> None:
    found = run("check", "digits-cnn", "train.epochs=0", "--json")
    assert json.loads(found.stdout)["exit_code"] == found.returncode == 2


def test_check_prints_what_can_be_read_again(tmp_path: Path) -> None:
    file = tmp_path / "again.yaml"
    file.write_text(run("check", "digits-techniques", "train.epochs=5").stdout)
    first = json.loads(run("check", "digits-techniques", "train.epochs=5", "--json").stdout)
    assert json.loads(run("check", str(file), "--json").stdout) == first


def test_a_recipe_can_be_copied_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert run("recipes", "copy", "digits-cnn", str(file)).returncode == 0
    assert "got one that exists" in run("recipes", "copy", "digits-cnn", str(file)).stderr


def test_the_plan_of_a_sweep_can_be_seen_first() -> None:
    found = run("sweep", "digits-techniques", "--dry-run")
    assert "8 arms × 3 seeds = 24 trainings" in found.stdout


def test_what_would_be_ended_or_deleted_can_be_seen_first_and_is_json_too(tmp_path: Path) -> None:
    assert (
        "would end 0 servers, and no others\n"
        in run("down", "--dry-run", ORCHESTRATOR_HOME=str(tmp_path / "none")).stdout
    )
    said = run("down", "--delete-data", "--dry-run", ORCHESTRATOR_HOME=str(tmp_path / "none")).stdout
    assert "would end 0 servers, and no others, and delete every dataset, run and model" in " ".join(said.split())
    assert run("undeploy", "shop", "--dry-run").stdout == "would stop serving shop\n"
    found = json.loads(run("undeploy", "shop", "--dry-run", "--json").stdout)
    assert found == {"endpoint": "shop", "undeployed": False}


@pytest.mark.store
def test_runs_of_drills_are_listed_and_deleted_only_after_a_yes(store: Store) -> None:
    write_run(store, run="drill-x-killed", kind="table")
    store.write("runs/drill-x-killed/drill.json", b"{}")
    words, place = ["drill", "--delete", "--store", store.settings.url, "--json"], store_environment(store.settings)
    listed = {"runs": ["drill-x-killed"], "deleted": False}
    assert json.loads(run(*words, "--dry-run", **place).stdout) == listed
    refused = run(*words, **place)
    assert (refused.returncode, "Add --yes" in refused.stdout) == (2, True)
    assert store.exists("runs/drill-x-killed/run.json")
    refused = run(*words, "--yes", "--workers", "2", **place)
    assert "--workers must be left out beside --delete, got it" in refused.stdout
    assert json.loads(run(*words, "--yes", **place).stdout) == listed | {"deleted": True}
    assert not [*store.list("runs/drill-x-killed/")]


@pytest.mark.store
def test_datasets_are_pushed_listed_and_shown(store: Store) -> None:
    url = store.settings.url
    found = run("data", "push", "sklearn:digits", "--store", url, "--json")
    assert json.loads(found.stdout)["changed"] is True, found.stderr
    assert json.loads(run("data", "push", "sklearn:digits", "--store", url, "--json").stdout)["changed"] is False
    assert [d["name"] for d in json.loads(run("data", "ls", "--store", url, "--json").stdout)] == ["digits"]
    assert "a picture of 8 × 8, grey" in run("data", "show", "digits", "--store", url).stdout
    missing = run("data", "show", "digit", "--store", url)
    assert (missing.returncode, "got 'digit'" in missing.stderr) == (102, True)


@pytest.mark.store
def test_runs_that_do_not_exist_are_not_found(store: Store) -> None:
    push(store, "sklearn:digits")
    for words in (["show", "none"], ["resume", "none", "--address", "127.0.0.1:1"], ["report", "none"]):
        found = run(*words, "--store", store.settings.url)
        assert found.returncode == 102, found.stderr
        assert "must exist, got 'none'" in found.stderr


@pytest.mark.store
def test_a_store_that_refuses_the_keys_is_said_so(store: Store, tmp_path: Path) -> None:
    keys = tmp_path / "credentials"
    keys.write_text("[orchestrator]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n")
    found = run(
        "train",
        "digits-cnn",
        "--store",
        store.settings.url,
        "--address",
        "127.0.0.1:1",
        AWS_SHARED_CREDENTIALS_FILE=str(keys),
        AWS_PROFILE="orchestrator",
        AWS_ENDPOINT_URL=str(store.settings.endpoint_url),
        ORCHESTRATOR_HOME=str(tmp_path / "home"),
    )
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert "key" in found.stderr


@pytest.mark.store
def test_what_a_killed_upload_left_is_listed_and_removed(store: Store) -> None:
    write_run(store, run="half", kind="table")
    (whole,) = list_checkpoints(store, run="half")
    leftover = "runs/half/checkpoints/00000099-0123abcd/"
    store.write(leftover + "weights.safetensors", b"half")
    words = ["gc", "--json", "--store", store.settings.url]
    place = store_environment(store.settings)
    listed = json.loads(run(*words, "--dry-run", **place).stdout)
    assert listed == {"removed": False, "checkpoints": [{"prefix": leftover, "bytes": 4}]}
    assert json.loads(run(*words, "half", **place).stdout) == listed | {"removed": True}
    assert list_checkpoints(store, run="half") == [whole]
