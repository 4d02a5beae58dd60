"""Which trainings of a sweep are taken together as one batched model, and why; the others run one after the other."""

from collections.abc import Mapping
from typing import NamedTuple

from cluster.errors import ConfigError
from orchestrator.config import SweepConfig
from orchestrator.runs.record import RunRecord

MOST_TOGETHER = 16  # more gain little, and all are lost together where their process dies


class Packing(NamedTuple):
    """How a sweep is packed."""

    arms: frozenset[str]
    """Whose trainings are taken together."""
    size: int
    """So many of them."""
    note: str
    """What was chosen, in words."""


def can_train_together(record: RunRecord) -> bool:
    """Whether runs like this one, with other seeds and learning rates, can be trained as one, faster and exactly.

    That is so for an MLP on one CPU worker, but not

    - in bf16, where another order of sums is felt;
    - with Adam and batch normalization: what the latter takes out, such as a pixel that is the same in a whole batch,
      leaves weights with a gradient of rounding errors alone, and Adam makes full steps of it (1e-3 in a few updates).

    A CNN is no faster: see `tests/benchmarks/replicates.py`.
    """
    experiment, techniques = record.experiment, record.techniques
    is_exact = experiment.train.precision != "bf16" and not (
        experiment.train.optimizer == "adam" and techniques.regularization == "layers"
    )
    is_faster = experiment.model.type == "mlp" and experiment.scaling.max_workers == 1 and techniques.processor == "cpu"
    return is_exact and is_faster


def choose_packing(settings: SweepConfig, runs: Mapping[str, RunRecord], *, lanes: int) -> Packing:
    """Take seeds of an arm together where that pays; each lane is to have work.

    Args:
        settings: of the sweep.
        runs: what each arm trains.
        lanes: trainings, or packs of them, at the same time.

    Raises:
        ConfigError: if they are to be together and cannot.
    """
    able = frozenset(arm for arm, run in runs.items() if can_train_together(run))
    size = min(MOST_TOGETHER, settings.seeds, len(runs) * settings.seeds // lanes)
    reason = _reason_alone(settings, runs, able, size)
    if reason and settings.replicates == "together":
        raise ConfigError(f"sweep.replicates must be auto or alone here, got together: {reason}.")
    if reason:
        return Packing(frozenset(), 1, f"each training by itself ({reason})")
    which = "each arm" if len(able) == len(runs) else f"each of {len(able)} arms (MLPs)"
    return Packing(able, size, f"{which} trains {size} seeds as one batched model; its seconds are shared equally")


def _reason_alone(settings: SweepConfig, runs: Mapping[str, RunRecord], able: frozenset[str], size: int) -> str | None:
    has_prices = settings.dollars_per_hour or any(run.experiment.scaling.dollars_per_hour for run in runs.values())
    if settings.replicates == "alone":
        return "sweep.replicates: alone"
    if settings.cell_timeout_minutes is not None:
        return "sweep.cell_timeout_minutes holds for each"
    if not able:
        return "batched models are for MLPs on one CPU worker, not with bf16, nor with Adam and batch normalization"
    if size < 2:
        return "there is one seed" if settings.seeds == 1 else "there are as many lanes as trainings"
    if settings.replicates == "auto" and len(able) < len(runs) and (settings.target is not None or has_prices):
        return "costs are compared, and not all arms could be batched"
    return None
