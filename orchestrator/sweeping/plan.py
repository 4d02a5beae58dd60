"""Decides what a sweep consists of: its arms, seeds, lanes and what the reader should know of it."""

from collections.abc import Mapping
from typing import Any

from cluster.errors import ConfigError
from cluster.session import cluster_resources
from models.config import has_activation
from models.features import HIGHER_IS_BETTER
from orchestrator.config import Experiment, SweepConfig
from orchestrator.configfile import near_miss, setting_names, validate
from orchestrator.document import Document, set_dotted
from orchestrator.evidence.design import Design, Settings, plan_design
from orchestrator.runs.record import RunRecord, utc_now
from orchestrator.sweeping.budget import Prediction, budget_text, prediction_text, seeds_within
from orchestrator.sweeping.record import Arm, SweepRecord
from orchestrator.training.packs import choose_packing

ACTIVATION = "techniques.activation"
MOST_SEEDS = 1000


def plan_sweep(experiment: Experiment) -> tuple[Design, list[Arm]]:
    """Return the design and its validated arms.

    Combinations that differ only in a setting their model does not have are one arm.

    Raises:
        ConfigError: naming the setting or the combination that is wrong.
    """
    if experiment.sweep is None:
        raise ConfigError(
            "sweep must be given, got nothing. Add what to vary, such as sweep: {vary: {model.dropout: [0, 0.2]}}."
        )
    _check_names(experiment.sweep.vary)
    design = plan_design(
        experiment.sweep.vary,
        resolution=experiment.sweep.resolution,
        applicable=lambda settings: _applicable(settings, experiment),
    )
    arms = [Arm(**dict(arm), experiment=_with_settings(experiment, arm.settings)) for arm in design.arms]
    return design, arms


def plan_arms(experiment: Experiment) -> list[Arm]:
    """The arms of `plan_sweep`."""
    return plan_sweep(experiment)[1]


def plan_lines(record: SweepRecord) -> list[str]:
    """What a person should know of a sweep before it begins, beside its arms and seeds."""
    settings = record.experiment.sweep
    assert settings is not None
    rate = record.experiment.train.learning_rate
    lines = [*record.generators, *record.aliases, *record.notes]
    if settings.tune_learning_rate:
        lines.append(f"learning rate: tuned, {settings.tune_learning_rate} trainings for each arm")
    elif "train.learning_rate" not in settings.vary:
        lines.append(f"all arms at one learning rate ({rate:g})")
    if record.prediction:
        expected = prediction_text(record.prediction, seeds=len(record.seeds))
        within = f" of a budget of {budget_text(settings.budget)}" if settings.budget else ""
        lines.append(
            f"predicted: {expected}{within}, {record.prediction.lanes} trainings at a time; "
            f"the probe took {record.prediction.probe_seconds:.0f} s"
        )
    return lines


def within(settings: SweepConfig, prediction: Prediction, record: SweepRecord) -> SweepRecord:
    """With the seeds that the budget pays for, if there is one."""
    most = settings.seeds if settings.budget is None or "seeds" in settings.model_fields_set else MOST_SEEDS
    seeds = seeds_within(settings.budget, prediction, most=most) if settings.budget else most
    first = record.seeds[0]
    return record.model_copy(update={"seeds": list(range(first, first + seeds)), "prediction": prediction})


def num_lanes(experiment: Experiment, runs: Mapping[str, RunRecord], todo: int) -> int:
    """As many as the cluster has room for, the file allows and the work needs."""
    resources, need = cluster_resources(), cell_resources(runs)
    room = min(int(resources.get(kind, 0) // amount) for kind, amount in need.items() if amount)
    asked = experiment.sweep.concurrency if experiment.sweep else None
    return max(1, min(asked or room, room, todo))


def cell_resources(runs: Mapping[str, RunRecord]) -> dict[str, float]:
    """The most that one cell of any arm needs at a time."""
    scaling = [run.experiment.scaling for run in runs.values()]
    gpus = max(run.experiment.scaling.max_workers * (run.techniques.processor == "gpu") for run in runs.values())
    return {"CPU": max(s.max_workers * s.cpus_per_worker for s in scaling)} | ({"GPU": gpus} if gpus else {})


def sweep_record(
    experiment: Experiment, design: Design, arms: list[Arm], runs: Mapping[str, RunRecord], name: str | None
) -> SweepRecord:
    """Return the record of a new sweep.

    Raises:
        ConfigError: the metric is not one of the task's.
    """
    assert experiment.sweep is not None
    first = runs[arms[0].name]
    metric = experiment.sweep.metric or first.primary_metric
    if metric not in HIGHER_IS_BETTER:
        raise ConfigError(
            f"sweep.metric must be a metric of the task, got {metric!r}. {near_miss(metric, HIGHER_IS_BETTER)}"
        )
    seed = experiment.train.seed
    lanes = num_lanes(experiment, runs, len(arms) * experiment.sweep.seeds)
    packing = choose_packing(experiment.sweep, runs, lanes=lanes)
    return SweepRecord(
        sweep=name or f"{first.run}-sweep"[:50],
        state="running",
        created=utc_now(),
        experiment=experiment,
        arms=[_as_planned(arm, runs[arm.name]) for arm in arms],
        seeds=list(range(seed, seed + experiment.sweep.seeds)),
        metric=metric,
        higher_is_better=HIGHER_IS_BETTER[metric],
        dollars_per_hour=_prices(experiment, runs),
        resolution=design.resolution,
        generators=design.generators,
        aliases=design.aliases,
        notes=[*design.notes, packing.note],
        together=dict.fromkeys(sorted(packing.arms), packing.size),
    )


def _as_planned(arm: Arm, run: RunRecord) -> Arm:
    """Every cell reads the same data, also where a newer version is pushed before the sweep ends."""
    data = arm.experiment.data.model_copy(update={"version": run.dataset.version})
    experiment = arm.experiment.model_copy(update={"data": data})
    found = {"parameters": run.parameters or None, "left_out": run.left_out}
    return arm.model_copy(update={"experiment": experiment, **found})


def _prices(experiment: Experiment, runs: Mapping[str, RunRecord]) -> dict[str, float]:
    assert experiment.sweep is not None
    prices = {}
    for arm, run in runs.items():
        scaling = run.experiment.scaling
        price = experiment.sweep.dollars_per_hour.get(run.techniques.processor, scaling.dollars_per_hour)
        if price is not None:
            prices[arm] = price * scaling.max_workers
    return prices


def _check_names(vary: Mapping[str, list[Any]]) -> None:
    known = {name for name, _ in setting_names()} | {"techniques"}
    for name in vary:
        if name not in known or name.startswith(("sweep", "search", "train.seed")):
            raise ConfigError(f"sweep.vary.{name} must name a setting, got {name!r}. {near_miss(name, known)}")


def _applicable(settings: Settings, experiment: Experiment) -> tuple[Settings, tuple[str, ...]]:
    """Split an arm's settings into those that apply and the names of those that its model lacks."""
    without = {k: v for k, v in settings.items() if k != ACTIVATION}
    if ACTIVATION not in settings or has_activation(_with_settings(experiment, without).model):
        return settings, ()
    return without, (ACTIVATION,)


def _with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    values = experiment.model_dump(mode="json", exclude_unset=True)
    for name, value in settings.items():
        set_dotted(values, name, value)
    arm = ", ".join(f"{k}={v}" for k, v in settings.items())
    return validate(Document(f"sweep.vary ({arm})", values, {}))
