"""What the verbs return says in a line or two what it is, and keeps its fields."""

import math
from pathlib import Path
from typing import cast

from cluster.s3.store import Store
from orchestrator.data.push import push
from orchestrator.drill import perform, plan_drill
from orchestrator.runs.record import read_run
from orchestrator.searching.record import SearchRecord, TrialRecord, result_of
from orchestrator.sweep import NotebookResult
from orchestrator.train import RunResult
from serving.deploy import Endpoint
from tests.example_runs import write_run
from tests.fake_store import MemoryStore
from tests.test_drill import Training, experiment
from tests.test_reporting import sweep_result


def test_a_training_names_its_run_its_metrics_and_its_folder() -> None:
    store = cast(Store, MemoryStore())
    write_run(store, run="r1", kind="table")
    record = read_run(store, "r1")
    result = RunResult("r1", {"accuracy": 0.97222, "loss": 0.1}, [{"epoch": 1}], record)
    assert repr(result) == str(result)
    assert repr(result) == "<RunResult r1: finished, test accuracy 0.9722, loss 0.1, 1 epochs; runs/r1/>"
    assert result.metrics["accuracy"] == 0.97222
    nothing = RunResult("r1", {}, [], record)
    assert repr(nothing) == "<RunResult r1: finished, test no metrics, 0 epochs; runs/r1/>"


def test_a_sweep_names_its_trainings_its_winner_and_its_folder() -> None:
    result = sweep_result()
    place = f"sweeps/{result.sweep}/"
    assert repr(NotebookResult(*result)) == (
        f"<SweepResult {result.sweep}: finished, {len(result.cells)} trainings of 16 arms, no clear winner; {place}>"
    )
    won = result._replace(ledger=result.ledger.model_copy(update={"winner": "arm-03"}))
    assert repr(won).endswith(f"trainings of 16 arms, winner arm-03; {place}>")


def test_a_search_names_its_best_run_and_its_folder() -> None:
    record = SearchRecord(
        search="s1",
        state="finished",
        created="2026-11-22T10:15:00Z",
        experiment=experiment(),
        metric="accuracy",
        higher_is_better=True,
        judged_on="validation",
    )
    trials = [
        TrialRecord(number=n, run=f"s1.trial-00{n}", state="finished", values={}, value=value)
        for n, value in ((0, 0.5), (1, 0.75))
    ]
    result = result_of(record, trials, {"accuracy": 0.7}, seconds=math.nan)
    assert repr(result) == ("<SearchResult s1: finished, 2 trials, best s1.trial-001, test accuracy 0.7; searches/s1/>")
    assert repr(result_of(record, [], {}, seconds=math.nan)) == (
        "<SearchResult s1: finished, 0 trials, no best yet; searches/s1/>"
    )


def test_a_drill_says_whether_it_passed_and_which_runs_are_left() -> None:
    memory = cast(Store, MemoryStore())
    plan = plan_drill(experiment(), name="d", kill="worker", workers=2, epochs=2)
    passed = perform(plan, store=memory, fit=Training(memory))
    assert repr(passed) == str(passed)
    assert repr(passed) == (
        f"<DrillResult passed: worker killed after step {passed.kill_step}, {passed.steps_lost} steps lost; "
        f"runs/{passed.unbroken}/ and runs/{passed.killed}/>"
    )
    failed = passed.model_copy(update={"passed": False, "differences": ("weights", "metrics")})
    assert f"failed: worker killed after step {passed.kill_step}, other weights, metrics, " in repr(failed)
    assert "failed: no worker was killed, " in repr(passed.model_copy(update={"passed": False, "was_killed": False}))


def test_a_push_names_the_dataset_its_rows_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,label\n" + "".join(f"{n},{n % 2}\n" for n in range(40)))
    result = push(cast(Store, MemoryStore()), str(tmp_path / "t.csv"), name="shop")
    version = result.manifest.version
    rows = ", ".join(f"{split.rows} {name} rows" for name, split in result.manifest.splits.items())
    assert repr(result) == (
        f"PushResult(manifest=<Manifest shop {version}: {rows}; datasets/shop/{version}/>, changed=True)"
    )
    assert len(repr(result)) < 160


def test_an_endpoint_names_its_model_and_its_address() -> None:
    endpoint = Endpoint(
        name="shop",
        version="v1",
        weights_sha256="0" * 64,
        url="http://127.0.0.1:8000",
        replicas=2,
        cpus=0.0,
        status="running",
        token_file="/t",
    )
    assert repr(endpoint) == "<Endpoint shop v1: running, 2 replicas at http://127.0.0.1:8000/models/shop/predict>"
