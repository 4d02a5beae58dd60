"""Chooses a learning rate for each arm by a few trainings of its own, so that none is judged at what suits another."""

import math
from collections.abc import Iterator, Mapping, Sequence

from models.records import Frozen

STEP = math.sqrt(10)  # between neighbours of the grid: less makes little difference, more misses the best


class Trial(Frozen):
    """One training of the tuning."""

    learning_rate: float
    value: float | None
    """The sweep's metric; ``None`` if the training failed or it is no number."""
    seconds: float


class Tuned(Frozen):
    """How an arm's learning rate was chosen."""

    learning_rate: float
    seed: int
    """None of the sweep's: what it does for a learning rate by chance must not come back in the comparison."""
    split: str
    """The split that the trials were judged on."""
    trials: list[Trial]


def learning_rates(center: float, *, trials: int) -> list[float]:
    """A grid of factors of √10 around ``center``, ascending; of an even number, more lie below."""
    found = [center] + [float(f"{center * STEP**k:.3g}") for k in range(-(trials // 2), (trials + 1) // 2) if k]
    return sorted(found)


def choose(trials: Sequence[Trial], *, center: float, higher_is_better: bool) -> float:
    """The best learning rate; of equals the one nearest to ``center``, then the smaller; ``center`` if all failed."""
    sign = -1 if higher_is_better else 1

    def badness(trial: Trial) -> tuple[float, float, float]:
        assert trial.value is not None
        distance = round(abs(math.log(trial.learning_rate / center)), 1)  # the grid is rounded
        return sign * trial.value, distance, trial.learning_rate

    good = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    return min(good, key=badness).learning_rate if good else center


def tuning_notes(
    tuned: Mapping[str, Tuned | None], *, metric: str, center: float, dollars_per_hour: Mapping[str, float]
) -> Iterator[str]:
    """What a reader of the comparison must know of the learning rates, in words.

    Args:
        tuned: of every arm.
        metric: that decided.
        center: the learning rate of arms that were not tuned.
        dollars_per_hour: price of a training of each arm, where it is known.
    """
    found = {arm: one for arm, one in tuned.items() if one}
    if not found:
        yield (
            f"all arms at one learning rate ({center:g}), which may suit some better than others: "
            "sweep.tune_learning_rate gives each its own"
        )
        return
    first = next(iter(found.values()))
    seconds = {arm: math.fsum(trial.seconds for trial in one.trials) for arm, one in found.items()}
    dollars = math.fsum(seconds[arm] / 3600 * price for arm, price in dollars_per_hour.items() if arm in seconds)
    cost = f"{math.fsum(seconds.values()):.4g} s" + (f" and ${dollars:.4g}" if dollars else "")
    yield (
        f"every arm at a learning rate of its own, the best of {len(first.trials)} by {first.split} {metric} with seed "
        f"{first.seed}; these trainings took {cost}, which no arm's cost includes"
    )
    if first.split == "test":
        yield "there is no validation split: learning rates chosen on the test split make all arms look a little better"
    for arm, one in found.items():
        rates = [trial.learning_rate for trial in one.trials]
        if all(trial.value is None for trial in one.trials):
            yield f"{arm}: no training of its tuning finished: it keeps {one.learning_rate:g}"
        elif one.learning_rate in (min(rates), max(rates)):
            end = "smallest" if one.learning_rate == min(rates) else "largest"
            yield f"{arm}: its learning rate, {one.learning_rate:g}, is the {end} of those tried: another may be better"
