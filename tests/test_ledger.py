"""The table of arms and the verdict."""

import random

import pytest

from orchestrator.ledger import Cell, interval, summarize


def cells(values: dict[str, list[float]]) -> list[Cell]:
    return [
        Cell(arm=arm, seed=seed, run=f"{arm}-{seed}", state="finished", metrics={"accuracy": value}, seconds=1.0)
        for arm, found in values.items()
        for seed, value in enumerate(found)
    ]


def verdict(values: dict[str, list[float]], *, higher_is_better: bool = True) -> str | None:
    arms = {arm: {"x": arm} for arm in values}
    return summarize(cells(values), arms=arms, metric="accuracy", higher_is_better=higher_is_better).winner


def test_the_interval_is_students_t() -> None:
    # R: t.test(c(1, 2, 3, 4)) -> 0.4457397 4.5542603
    assert interval([1, 2, 3, 4]) == pytest.approx((0.4457397, 4.5542603), abs=1e-6)
    assert interval([1.0]) is None


def test_an_arm_that_is_better_with_every_seed_wins() -> None:
    values = {"a": [0.90, 0.91, 0.92], "b": [0.80, 0.82, 0.81]}
    assert verdict(values) == "a"
    assert verdict(values, higher_is_better=False) == "b"


def test_arms_are_compared_seed_by_seed() -> None:
    # seeds differ by far more than arms do, and yet one arm is better by 0.01 ± 0.001 with each
    assert verdict({"a": [0.511, 0.709, 0.910], "b": [0.50, 0.70, 0.90]}) == "a"


def test_there_is_no_winner_where_the_interval_crosses_zero() -> None:
    assert verdict({"a": [0.9, 0.8, 0.95], "b": [0.85, 0.9, 0.88]}) is None


def test_one_seed_names_no_winner() -> None:
    assert verdict({"a": [0.9], "b": [0.1]}) is None


def test_a_winner_is_seldom_declared_when_nothing_matters() -> None:
    source = random.Random(0)
    trials = 400
    found = sum(
        verdict({arm: [source.gauss(0, 1) for _ in range(5)] for arm in "abcd"}) is not None for _ in range(trials)
    )
    assert found / trials <= 0.08  # 5 % promised; three standard errors of 400 trials above it


def test_failed_and_broken_cells_count_for_nothing_and_are_reported() -> None:
    good = cells({"a": [0.9, 0.91, 0.92], "b": [0.5, 0.52, 0.51]})
    bad = [
        Cell(arm="b", seed=3, run="r", state="failed", seconds=1.0, error="out of memory"),
        Cell(arm="b", seed=4, run="r", state="finished", metrics={"accuracy": float("inf")}, seconds=1.0),
    ]
    ledger = summarize(good + bad, arms={"a": {}, "b": {}, "c": {}}, metric="accuracy", higher_is_better=True)
    assert ledger.winner == "a"
    assert [(row.arm, row.finished, row.failed) for row in ledger.arms] == [("a", 3, 0), ("b", 3, 2), ("c", 0, 0)]
    assert ledger.best_run == "a-2"


def test_the_order_of_cells_changes_nothing() -> None:
    found = cells({"a": [0.9, 0.8], "b": [0.7, 0.9], "c": [0.8, 0.8]})
    arms: dict[str, dict[str, object]] = {"a": {}, "b": {}, "c": {}}
    first = summarize(found, arms=arms, metric="accuracy", higher_is_better=True)
    assert summarize(found[::-1], arms=arms, metric="accuracy", higher_is_better=True) == first
