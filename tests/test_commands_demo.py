"""The demo, as a newcomer runs it: in a process of its own, in an empty home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.process.typed import typed
from orchestrator.cli import app
from orchestrator.commands import demo, terminal


@pytest.mark.ray
@pytest.mark.store
@pytest.mark.timeout(600)
def test_the_demo_trains_sweeps_deploys_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = subprocess.run(
        [sys.executable, "-m", "orchestrator", "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"ORCHESTRATOR_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["digits_cnn"]["accuracy"] >= 0.97
    assert report["digits_mlp"]["accuracy"] >= 0.95
    assert report["elnino_rnn"]["mse"] < report["elnino_rnn_baseline"]["mse"]
    assert report["china_fm"]["rmse"] < 25
    assert len(report["sweep"]["arms"]) == 8
    assert [query["model"] for query in report["queries"]] == ["digits", "elnino", "china"]
    assert report["queries"][0]["answer"].startswith(report["queries"][0]["truth"])
    assert set(report["seconds"]) >= {"up", "train digits-cnn", "sweep digits-techniques", "deploy digits", "down"}
    assert (tmp_path / "orchestrator-demo-restored.png").read_bytes().startswith(b"\x89PNG")
    left = [p.cmdline() for p in psutil.process_iter() if str(home) in " ".join(_words(p))]
    assert left == []
    assert " INFO " not in f" {found.stderr}"  # the log of a library


def test_the_commands_to_go_on_with_are_printed_as_they_are_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [typed("up"), typed("predict", "digits", "my picture.png")]
    report = {"queries": [], "store": "s3://b", "seconds": {"up": 1.0}, "next": steps}
    monkeypatch.setattr(demo, "run_demo", lambda *, keep: report)
    monkeypatch.setattr(terminal, "out", terminal._Terminal(stderr=False, width=200))
    app(["demo"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "Next:",
        "  orchestrator up",
        "  orchestrator predict digits 'my picture.png'",
    ]


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), *process.environ().values()]
    except psutil.Error:
        return []
