"""The settings that a search chooses from: checked before anything starts, and what the next trial tries."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from cluster.errors import ConfigError
from orchestrator.config import Experiment, RangeConfig, SearchConfig
from orchestrator.configfile import near_miss, setting_names, validate
from orchestrator.document import Document, set_dotted

Values = dict[str, Any]
"""Dotted name of a setting -> its value, of what the trials differ in."""
Space = Mapping[str, RangeConfig | list[Any]]

FIXED = ("data.name", "data.version", "data.lookback", "data.horizon", "train.epochs", "train.seed")
FIXED_GROUPS = ("data", "train", "scaling", "sweep", "search")
CHANGEABLE = frozenset(  # in the middle of a training, without another network or another order of samples
    f"train.{name}"
    for name in ("learning_rate", "momentum", "weight_decay", "l1", "l2", "label_smoothing", "clip_norm")
)
MOST_PROBES = 64


class Known(NamedTuple):
    """What an earlier trial has shown."""

    values: Values
    value: float | None
    """The value of the metric; ``None``: the training failed, which is worse than any value."""


def probes(experiment: Experiment) -> list[Experiment]:
    """Check the space: one experiment for each combination of ends and choices.

    Where these are more than `MOST_PROBES`, as many as show every end and every choice once.

    Raises:
        ConfigError: naming the setting or the combination that is wrong.
    """
    settings = experiment.search
    if settings is None:
        raise ConfigError(
            "search must be given, got nothing. Add what to choose, such as "
            "search: {trials: 20, space: {train.learning_rate: {low: 1e-4, high: 0.1, scale: log}}}."
        )
    if experiment.scaling.max_workers > 1:
        raise ConfigError(
            f"scaling.workers must be 1 for a search, got {experiment.scaling.workers}. "
            "Trials run beside each other, each in one process."
        )
    for name, domain in settings.space.items():
        _check_name(name)
        _check_kind(name, domain, method=settings.method)
    tried = {name: edges(name, domain) for name, domain in settings.space.items()}
    return [with_values(experiment, values) for values in _combinations(tried)]


def edges(name: str, domain: RangeConfig | list[Any]) -> list[Any]:
    """The values of a setting at which a broken rule would show.

    They are all of a list; of a range its ends, and what follows the lower one where that is certain.
    """
    if isinstance(domain, list):
        return domain
    step = domain.step or (1 if _is_whole(name) else None)
    found = [domain.low, domain.high] if step is None else [domain.low, domain.low + step, domain.high]
    return list(dict.fromkeys(int(v) for v in found)) if _is_whole(name) else found


def with_values(experiment: Experiment, values: Values) -> Experiment:
    """The experiment of one trial.

    Raises:
        ConfigError: if these values do not go together.
    """
    document = experiment.model_dump(mode="json", exclude_unset=True, exclude={"search", "sweep"})
    for name in sorted(values, key=lambda name: name.count(".")):  # a whole `model` before what it holds
        set_dotted(document, name, values[name])
    return validate(Document(f"search.space ({shown(values)})", document, {}))


def shown(values: Values) -> str:
    """Values in one line."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def suggest(settings: SearchConfig, *, number: int, known: Sequence[Known], higher_is_better: bool) -> Values:
    """What trial ``number`` tries: the same for the same arguments, however often the search was stopped.

    Args:
        settings: the space, the method and the seed.
        number: of the trial, from 0.
        known: what other trials have shown so far; only `tpe` looks at it.
        higher_is_better: whether the metric is to grow.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers: dict[str, type[Any]] = {"tpe": optuna.samplers.TPESampler}
    sampler = samplers.get(settings.method, optuna.samplers.RandomSampler)(seed=_seed(settings.seed, number))
    study = optuna.create_study(sampler=sampler, direction="maximize" if higher_is_better else "minimize")
    distributions = {name: _distribution(name, domain) for name, domain in settings.space.items()}
    for trial in known if settings.method == "tpe" else ():
        finite = trial.value is not None and math.isfinite(trial.value)
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if finite else optuna.trial.TrialState.PRUNED,
                value=trial.value if finite else None,
                params={name: _encoded(domain, trial.values[name]) for name, domain in settings.space.items()},
                distributions=distributions,
            )
        )
    chosen = study.ask(fixed_distributions=distributions).params
    return {name: _decoded(domain, chosen[name]) for name, domain in settings.space.items()}


def _check_name(name: str) -> None:
    known = {known for known, _ in setting_names()} | {"techniques"}
    if name not in known:
        raise ConfigError(f"search.space.{name} must name a setting, got {name!r}. {near_miss(name, known)}")
    group = name.partition(".")[0]
    if name in (*FIXED, *FIXED_GROUPS) or group in ("scaling", "sweep", "search"):
        raise ConfigError(
            f"search.space.{name} must be the same for all trials, got a choice. Set {name} outside of search."
        )


def _check_kind(name: str, domain: RangeConfig | list[Any], *, method: str) -> None:
    if isinstance(domain, RangeConfig) and _is_whole(name):
        for number in (domain.low, domain.high, domain.step or 1):
            if not float(number).is_integer():
                raise ConfigError(f"search.space.{name} must be a range of whole numbers, got {number}.")
    if method != "pbt":
        return
    if isinstance(domain, RangeConfig) and domain.step is not None:
        raise ConfigError(
            f"search.space.{name} must have no step for search.method pbt, which changes it by a fifth at a time, "
            f"got {domain.step:g}. Leave step out, or give the values as a list."
        )
    is_number = isinstance(domain, RangeConfig) or all(type(value) in (int, float) for value in domain)
    if name not in CHANGEABLE or not is_number:
        raise ConfigError(
            f"search.space.{name} must be a number that may change during a training for search.method pbt, "
            f"got {name!r}. Use {', '.join(sorted(CHANGEABLE))}, or another method."
        )


def _is_whole(name: str) -> bool:
    """Whether a setting is a whole number."""
    return any(
        int in (field.annotation, *get_args(field.annotation)) for known, field in setting_names() if known == name
    )


def _combinations(tried: Mapping[str, list[Any]]) -> list[Values]:
    if math.prod(map(len, tried.values())) <= MOST_PROBES:
        return [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]
    longest = max(map(len, tried.values()))
    return [{name: values[i % len(values)] for name, values in tried.items()} for i in range(longest)]


def _distribution(name: str, domain: RangeConfig | list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, list):
        return CategoricalDistribution(range(len(domain)))  # Optuna knows no lists as choices, so: their places
    log = domain.scale == "log"
    if _is_whole(name):
        return IntDistribution(int(domain.low), int(domain.high), log=log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, log=log, step=domain.step)


def _decoded(domain: RangeConfig | list[Any], chosen: Any) -> Any:
    return domain[chosen] if isinstance(domain, list) else chosen


def _encoded(domain: RangeConfig | list[Any], value: Any) -> Any:
    return domain.index(value) if isinstance(domain, list) else value


def _seed(seed: int, number: int) -> int:
    """Each trial draws from numbers of its own, so that a resumed search does not draw the first ones again."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])
