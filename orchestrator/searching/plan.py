"""Decides what a search is: its metric, its space in words, and its record."""

from typing import Any

from cluster.errors import ConfigError
from cluster.s3.store import Store
from models.features import HIGHER_IS_BETTER
from orchestrator.config import Experiment, RangeConfig
from orchestrator.configfile import near_miss
from orchestrator.runs.record import RunRecord, utc_now
from orchestrator.searching.record import SearchRecord


def space_rows(experiment: Experiment) -> list[tuple[str, str]]:
    """Every setting of the space, and in words what it may be."""
    assert experiment.search is not None
    return [(name, _domain_text(domain)) for name, domain in experiment.search.space.items()]


def plan_lines(record: SearchRecord) -> list[str]:
    """What a person should know of a search before it begins."""
    settings = record.experiment.search
    assert settings is not None
    lines = [f"{name}: {text}" for name, text in space_rows(record.experiment)]
    best = "highest" if record.higher_is_better else "lowest"
    lines.append(f"best: the {best} {record.metric} of the {record.judged_on} split after the last epoch")
    if record.judged_on == "test":
        lines.append("the dataset has no validation split: the test split chooses, and so flatters the best trial")
    if settings.concurrency == 1 and settings.method != "pbt":
        lines.append(f"one trial at a time: search.seed {settings.seed} leads to the same trials again")
    return lines


def search_record(experiment: Experiment, base: RunRecord, store: Store, name: str | None) -> SearchRecord:
    """Return the record of a new search.

    Raises:
        ConfigError: the metric is not one of the task's, or the name is taken.
    """
    assert experiment.search is not None
    metric = experiment.search.metric or base.primary_metric
    if metric not in HIGHER_IS_BETTER:
        raise ConfigError(
            f"search.metric must be a metric of the task, got {metric!r}. {near_miss(metric, HIGHER_IS_BETTER)}"
        )
    search = name or f"{base.run}-search"[:50]
    if store.exists(f"sweeps/{search}/sweep.json"):
        raise ConfigError(f"search must have a new name, got {search!r}, which is a sweep. Name another.")
    data = experiment.data.model_copy(update={"version": base.dataset.version})
    return SearchRecord(
        search=search,
        state="running",
        created=utc_now(),
        experiment=experiment.model_copy(update={"data": data}),
        metric=metric,
        higher_is_better=HIGHER_IS_BETTER[metric],
        judged_on=base.evaluated_on,
        left_out=base.left_out,
    )


def _domain_text(domain: RangeConfig | list[Any]) -> str:
    if isinstance(domain, list):
        return "one of " + ", ".join(map(str, domain))
    details = (["logarithmic"] if domain.scale == "log" else []) + ([f"step {domain.step:g}"] if domain.step else [])
    return ", ".join([f"{domain.low:g} to {domain.high:g}", *details])
