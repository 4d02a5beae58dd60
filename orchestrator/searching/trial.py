"""One trial of a search: its training in a process of Ray Tune."""

import json
import math
import secrets
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.config import StoreSettings
from cluster.errors import OrchestratorError, RunFailedError, StoreUnavailableError
from cluster.s3.store import Store
from cluster.staging import check_packages
from models.records import Frozen
from orchestrator.driving.tune import time_limit, timed_out_text
from orchestrator.runs.log import RunLog
from orchestrator.runs.record import RunRecord, read_run, update_run
from orchestrator.searching.record import Stage
from orchestrator.searching.space import Values

TUNE_CHECKPOINT = "checkpoint.json"


class Chosen(Frozen):
    """What a trial is given of its own."""

    number: int
    values: Values
    """The settings that `pbt` may change; with the other methods they are in the run's record alone."""


class TrialPlan(Frozen):
    """What Ray Tune hands to a trial; its `trial` goes over to those that copy it."""

    store: StoreSettings
    metric: str
    method: str
    timeout_minutes: float | None
    trial: Chosen

    @property
    def saves_every_epoch(self) -> bool:
        """Whether any epoch may be a trial's last, or the first of its copy."""
        return self.method in ("asha", "pbt")

    @property
    def is_copied(self) -> bool:
        """Whether trials go on from each other's checkpoints."""
        return self.method == "pbt"


def run_trial(config: Mapping[str, Any]) -> None:
    """Train one trial and report every epoch. Runs as a trial of Ray Tune, whose name is that of the run.

    Args:
        config: a `TrialPlan`.
    """
    from ray import tune

    check_packages()
    plan = TrialPlan.model_validate(config)
    try:
        _train(plan, Store(plan.store), tune.get_context().get_trial_name())
    except StoreUnavailableError as error:
        tune.report({"undone": str(error)})  # no fault of the trial, which stays to be done
    except OrchestratorError as error:
        tune.report({"error": str(error)})
    except Exception:  # whatever a trial does, the search goes on; the traceback is kept
        tune.report({"error": traceback.format_exc(limit=-5)})


def finish_best(run: str, store: dict[str, Any], keep_only: list[str]) -> dict[str, float]:
    """Judge a trial on the test split, and remove what no run needs any more. Runs in a worker.

    Args:
        run: the trial's.
        store: settings of the store.
        keep_only: runs whose checkpoints could not be pruned before, since others might have copied them.
    """
    from orchestrator.runs.checkpoint import prune
    from orchestrator.training.epoch import evaluate
    from orchestrator.training.fit import restore
    from orchestrator.training.trainer import World, build_trainer

    opened = Store(StoreSettings.model_validate(store))
    record = read_run(opened, run)
    trainer = build_trainer(record, store=opened, world=World())
    restore(trainer)
    for other in keep_only:
        prune(opened, run=other, keep=record.experiment.train.keep_checkpoints)
    return evaluate(trainer, "test")


def _train(plan: TrialPlan, store: Store, run: str) -> None:
    copied, stages = _copied(store)
    values = plan.trial.values
    if not stages or (stages[-1].run, stages[-1].values) != (run, values):  # else it was only paused
        stages.append(Stage(run=run, after_epoch=copied.progress.epoch if copied else 0, values=values))
    record = _with_changes(_still_open(store, run), values)
    with time_limit(plan.timeout_minutes, partial(_give_up, record, store, plan)), RunLog(store, run) as log:
        trainer = _begun(record, store, log, copied)
        _train_to_the_end(trainer, plan, stages)


def _still_open(store: Store, run: str) -> RunRecord:
    found = read_run(store, run)
    if found.state == "failed":
        raise RunFailedError(found.error or "")  # by `_give_up`: Tune has started its trial once more
    return found


def _begun(record: RunRecord, store: Store, log: RunLog, copied: Any) -> Any:
    """The trial's trainer, at its start or where another trial's checkpoint leaves off."""
    import torch

    from orchestrator.training.trainer import World, build_trainer, load_state

    device = torch.device("cuda" if record.techniques.processor == "gpu" else "cpu")
    trainer = build_trainer(record, store=store, world=World(device=device), log=log)
    update_run(store, record.model_copy(update={"parameters": sum(p.numel() for p in trainer.network.parameters())}))
    if copied:
        load_state(trainer, copied)
    return trainer


def _train_to_the_end(trainer: Any, plan: TrialPlan, stages: Sequence[Stage]) -> None:
    """Train, save and report every epoch."""
    from orchestrator.training.fit import train_epochs

    began = time.perf_counter()
    for metrics in train_epochs(trainer, judged_on=trainer.record.evaluated_on):
        epoch = trainer.position.epoch
        value = _finite(plan.metric, metrics, epoch)
        if plan.saves_every_epoch or epoch == trainer.settings.epochs:
            _save(trainer, prunes=not plan.is_copied)
        result = {
            "value": value,
            "epoch": epoch,
            "metrics": metrics,
            "history": list(trainer.history),
            "checkpoint_prefix": trainer.checkpoint,
            "stages": [stage.model_dump(mode="json") for stage in stages],
            "epoch_seconds": time.perf_counter() - began,
        }
        _tell(result, with_checkpoint=plan.is_copied)
        began = time.perf_counter()


def _give_up(record: RunRecord, store: Store, plan: TrialPlan) -> None:
    """Let the run fail whose time is over."""
    assert plan.timeout_minutes is not None
    error = timed_out_text(plan.timeout_minutes, setting="search.trial_timeout_minutes", what="it")
    update_run(store, record.model_copy(update={"state": "failed", "error": error}))


def _with_changes(record: RunRecord, values: Values) -> RunRecord:
    """With the settings that `pbt` has chosen in the meantime; all are of `train`."""
    changes = {name.removeprefix("train."): value for name, value in values.items()}
    train = record.experiment.train.model_copy(update=changes)
    return record.model_copy(update={"experiment": record.experiment.model_copy(update={"train": train})})


def _finite(metric: str, metrics: Mapping[str, float], epoch: int) -> float:
    value = metrics.get(metric, math.nan)
    if math.isfinite(value):
        return value
    raise RunFailedError(f"{metric} must be a finite number, got {value} after epoch {epoch}.")


def _save(trainer: Any, *, prunes: bool) -> None:
    from orchestrator.runs.checkpoint import prune, save_checkpoint
    from orchestrator.training.trainer import snapshot

    store, run = trainer.store, trainer.record.run
    trainer.checkpoint = save_checkpoint(store, run=run, attempt=secrets.token_hex(4), state=snapshot(trainer))
    if prunes:
        prune(store, run=run, keep=trainer.settings.keep_checkpoints)


def _tell(result: dict[str, Any], *, with_checkpoint: bool) -> None:
    """Report an epoch. What Tune keeps and copies as its checkpoint is no more than the key of ours."""
    from ray import tune

    if not with_checkpoint:
        tune.report(result)
        return
    with tempfile.TemporaryDirectory(prefix="orchestrator-trial-") as folder:
        told = {"prefix": result["checkpoint_prefix"], "stages": result["stages"]}
        Path(folder, TUNE_CHECKPOINT).write_text(json.dumps(told))
        tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


def _copied(store: Store) -> tuple[Any, list[Stage]]:
    """What Tune wants this process to go on from, and how that came about."""
    from ray import tune

    from orchestrator.runs.checkpoint import load_checkpoint

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None, []
    with checkpoint.as_directory() as folder:
        found = json.loads(Path(folder, TUNE_CHECKPOINT).read_text())
    return load_checkpoint(store, prefix=found["prefix"]), [Stage.model_validate(s) for s in found["stages"]]
