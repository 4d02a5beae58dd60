"""The learning rate of each arm: what is tried, what is chosen, and what is said of it."""

import math

import pytest

from orchestrator.sweeping.tuning import Trial, Tuned, choose, learning_rates, tuning_notes


def trials(values: dict[float, float | None]) -> list[Trial]:
    return [Trial(learning_rate=rate, value=value, seconds=2.0) for rate, value in values.items()]


def test_the_grid_is_logarithmic_around_the_given_learning_rate() -> None:
    assert learning_rates(0.05, trials=5) == [0.005, 0.0158, 0.05, 0.158, 0.5]
    assert learning_rates(0.05, trials=2) == [0.0158, 0.05]
    assert learning_rates(0.1234567, trials=3) == [0.039, 0.1234567, 0.39]  # the given one is not rounded
    assert all(len(learning_rates(0.3, trials=n)) == n for n in range(2, 16))


def test_the_best_value_wins_whichever_way_is_better() -> None:
    found = trials({0.1: 0.5, 1.0: 0.9, 10.0: 0.7})
    assert choose(found, center=0.1, higher_is_better=True) == 1.0
    assert choose(found, center=0.1, higher_is_better=False) == 0.1


def test_of_equals_the_nearest_and_then_the_smaller_wins_in_whatever_order_they_come() -> None:
    found = trials({0.0158: 0.9, 0.05: 0.8, 0.158: 0.9, 0.5: 0.9})
    for order in (found, found[::-1]):
        assert choose(order, center=0.05, higher_is_better=True) == 0.0158


def test_what_failed_is_not_chosen_and_without_any_result_nothing_changes() -> None:
    assert choose(trials({0.1: None, 1.0: math.nan, 10.0: 0.1}), center=0.1, higher_is_better=True) == 10.0
    assert choose(trials({0.1: None, 1.0: None}), center=0.1, higher_is_better=True) == 0.1


@pytest.mark.parametrize(
    ("tuned", "split", "notes"),
    [
        (
            {0.05: 0.5, 0.158: 0.9, 0.5: 0.6},
            "validation",
            ["every arm at a learning rate of its own, the best of 3 by validation accuracy with seed 9; these"],
        ),
        (
            {0.05: 0.9, 0.158: 0.5, 0.5: 0.6},
            "test",
            ["every arm", "there is no validation split", "a: its learning rate, 0.05, is the smallest of those tried"],
        ),
        (
            {0.05: None, 0.158: None, 0.5: None},
            "validation",
            ["every arm", "a: no training of its tuning finished: it keeps 0.158"],
        ),
    ],
)
def test_what_was_done_is_said(tuned: dict[float, float | None], split: str, notes: list[str]) -> None:
    found = trials(tuned)
    rate = choose(found, center=0.158, higher_is_better=True)
    one = Tuned(learning_rate=rate, seed=9, split=split, trials=found)
    said = list(tuning_notes({"a": one}, metric="accuracy", center=0.158, dollars_per_hour={"a": 36.0}))
    assert [line[: len(start)] for line, start in zip(said, notes, strict=True)] == notes
    assert "took 6 s and $0.06, which no arm's cost includes" in said[0]


def test_one_learning_rate_for_all_is_said_too() -> None:
    (line,) = tuning_notes({"a": None, "b": None}, metric="accuracy", center=0.05, dollars_per_hour={})
    assert line.startswith("all arms at one learning rate (0.05), which may suit some better than others")
