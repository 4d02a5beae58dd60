"""Writes down what became of every trial while Ray Tune runs them."""

# ruff: noqa: ARG002  (Tune passes its callbacks more than they need)

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ray import tune

from cluster.s3.store import Store
from models.config import has_activation, resolve_techniques
from orchestrator.config import Experiment
from orchestrator.driving.tune import lost_text
from orchestrator.runs.record import RunRecord, read_run, update_run, utc_now
from orchestrator.searching.record import TrialRecord, trial_name, write_trial
from orchestrator.searching.space import Known, Values, suggest, with_values


class Journal(tune.Callback):
    """Writes the runs of the trials: when they begin, and, with the trials' own records, when they end."""

    def __init__(
        self,
        experiment: Experiment,
        base: RunRecord,
        known: Iterable[TrialRecord],
        *,
        gpu_available: bool,
        store: Store,
    ) -> None:
        self.experiment, self.base, self.gpu_available, self.store = experiment, base, gpu_available, store
        self.known = [Known(trial.values, trial.value if trial.state != "failed" else None) for trial in known]
        self._values: dict[int, Values] = {}
        self._latest: dict[int, dict[str, Any]] = {}
        self._seconds: dict[int, float] = {}

    def begin(self, number: int, *, higher_is_better: bool) -> dict[str, Any]:
        """Choose the settings of a trial, write its run, and return the trial as Tune's configuration holds it."""
        search = self.experiment.search
        assert search is not None
        values = suggest(search, number=number, known=self.known, higher_is_better=higher_is_better)
        record = self._record(number, values)
        update_run(self.store, record)
        self._values[number] = values
        return {"number": number, "values": values if search.method == "pbt" else {}}

    def run_of(self, trial: Any) -> str:
        """The name of a trial's run; its number in Tune's configuration goes over to those that copy it."""
        return f"{self.base.run}.{trial_name(trial.config['trial']['number'])}"

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Keep the newest epoch of a trial."""
        if "value" in result:
            number = _number(trial)
            self._latest[number] = dict(result)
            self._seconds[number] = self._seconds.get(number, 0.0) + result["epoch_seconds"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Write down a trial that has ended, or that the scheduler has ended."""
        last = trial.last_result or {}
        if "undone" not in last:
            self._end(trial, error=last.get("error"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Write down a trial whose process died more often than is forgiven."""
        self._end(trial, error=lost_text(concurrency="search.concurrency"))

    def _end(self, trial: Any, *, error: str | None) -> None:
        number = _number(trial)
        last = self._latest.get(number, {})
        found = TrialRecord(
            number=number,
            run=str(trial),
            state=_state(last, error, epochs=self.experiment.train.epochs),
            values=self._values[number] | trial.config["trial"]["values"],
            value=last.get("value"),
            epochs=last.get("epoch", 0),
            seconds=round(self._seconds.get(number, 0.0), 3),
            history=last.get("history", []),
            stages=last.get("stages", []) if trial.config["trial"]["values"] else [],
            error=error,
        )
        self._write_run(found, last)
        write_trial(self.store, self.base.run, found)
        self.known.append(Known(found.values, found.value if found.state != "failed" else None))

    def _write_run(self, trial: TrialRecord, last: Mapping[str, Any]) -> None:
        lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in trial.history)
        self.store.write(f"runs/{trial.run}/metrics.jsonl", lines.encode())
        changes = {
            "state": "unfinished" if trial.state == "stopped" else trial.state,
            "metrics": last.get("metrics", {}),
            "checkpoint": last.get("checkpoint_prefix"),
            "seconds": trial.seconds,
            "error": trial.error,
        }
        update_run(self.store, read_run(self.store, trial.run).model_copy(update=changes))

    def _record(self, number: int, values: Values) -> RunRecord:
        experiment = with_values(self.experiment, values)
        techniques = resolve_techniques(experiment.techniques, experiment.model, gpu_available=self.gpu_available)
        return self.base.model_copy(
            update={
                "run": f"{self.base.run}.{trial_name(number)}",
                "sweep": self.base.run,
                "created": utc_now(),
                "experiment": experiment,
                "techniques": techniques,
                "not_applicable": () if has_activation(experiment.model) else ("techniques.activation",),
            }
        )


def _number(trial: Any) -> int:
    return int(str(trial).rpartition("-")[2])


def _state(last: Mapping[str, Any], error: str | None, *, epochs: int) -> str:
    if error is not None:
        return "failed"
    return "finished" if last.get("epoch") == epochs else "stopped"
