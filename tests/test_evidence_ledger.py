"""The table of arms, the verdict, and what every factor does to quality, seconds and dollars."""

import itertools
import json
import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.evidence.design import plan_design
from orchestrator.evidence.effects import Effect, Response, analyze, interval
from orchestrator.evidence.fitting import OTHER, RESIDUAL, SEED
from orchestrator.evidence.ledger import Goal, restrict, seconds_to_target, summarize
from orchestrator.evidence.record import Cell, Ledger


def cells(values: dict[str, list[float]]) -> list[Cell]:
    return [
        Cell(arm=arm, seed=seed, run=f"{arm}-{seed}", state="finished", metrics={"accuracy": value}, seconds=1.0)
        for arm, found in values.items()
        for seed, value in enumerate(found)
    ]


def verdict(values: dict[str, list[float]], *, higher_is_better: bool = True) -> str | None:
    arms = {arm: {"x": arm} for arm in values}
    return summarize(cells(values), arms=arms, goal=Goal("accuracy", higher_is_better)).winner


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


def test_failed_and_broken_cells_count_for_nothing_and_are_reported() -> None:
    good = cells({"a": [0.9, 0.91, 0.92], "b": [0.5, 0.52, 0.51]})
    bad = [
        Cell(arm="b", seed=3, run="r", state="failed", seconds=1.0, error="out of memory"),
        Cell(arm="b", seed=4, run="r", state="finished", metrics={"accuracy": float("inf")}, seconds=1.0),
    ]
    ledger = summarize(good + bad, arms={"a": {}, "b": {}, "c": {}}, goal=Goal("accuracy", higher_is_better=True))
    assert ledger.winner == "a"
    assert [(row.arm, row.finished, row.failed) for row in ledger.arms] == [("a", 3, 0), ("b", 3, 2), ("c", 0, 0)]
    assert ledger.best_run == "a-2"


def test_the_order_of_cells_changes_nothing() -> None:
    found = cells({"a": [0.9, 0.8], "b": [0.7, 0.9], "c": [0.8, 0.8]})
    arms: dict[str, dict[str, object]] = {"a": {}, "b": {}, "c": {}}
    first = summarize(found, arms=arms, goal=Goal("accuracy", higher_is_better=True))
    assert summarize(found[::-1], arms=arms, goal=Goal("accuracy", higher_is_better=True)) == first


def test_a_metric_that_is_no_number_survives_the_store() -> None:
    cell = Cell(arm="a", seed=0, run="r", state="finished", metrics={"loss": math.nan, "rmse": math.inf}, seconds=1.0)
    again = Cell.model_validate_json(cell.model_dump_json())
    assert math.isnan(again.metrics["loss"])
    assert again.metrics["rmse"] == math.inf
    json.loads(cell.model_dump_json(), parse_constant=pytest.fail)  # NaN as such is no JSON


# ------------------------------------------------------------------------------------------------------------ effects

TECHNIQUES = {
    "techniques.activation": ["tanh", "relu"],
    "techniques.initialization": ["constant", "normalized"],
    "techniques.gradient": ["batch", "stochastic"],
}


def product(factors: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    return {
        f"arm-{i:02d}": dict(zip(factors, v, strict=True)) for i, v in enumerate(itertools.product(*factors.values()))
    }


def measured(
    arms: dict[str, dict[str, Any]], seeds: int, value: Callable[[dict[str, Any]], float], *, noise: float = 0.01
) -> dict[tuple[str, int], float]:
    """A value for every arm and seed: what the settings give, what the seed gives to all, and noise."""
    source = random.Random(0)
    blocks = [source.gauss(0, 0.1) for _ in range(seeds)]
    return {
        (arm, seed): value(settings) + blocks[seed] + source.gauss(0, noise)
        for arm, settings in arms.items()
        for seed in range(seeds)
    }


def response(
    values: dict[tuple[str, int], float], arms: dict[str, dict[str, Any]], *, higher_is_better: bool = True
) -> Response:
    return analyze(values, arms=arms, name="accuracy", higher_is_better=higher_is_better)


def effect(found: Response, *factors: str) -> Effect:
    return next(e for e in found.effects if e.factors == factors)


def test_an_effect_is_deep_minus_traditional_in_whatever_order_the_levels_are_listed() -> None:
    for levels in (["tanh", "relu"], ["relu", "tanh"]):
        arms = product({"techniques.activation": levels, "model.dropout": [0.2, 0.0]})
        values = measured(arms, 4, lambda s: 0.1 * (s["techniques.activation"] == "relu"))
        found = effect(response(values, arms), "techniques.activation")
        assert found.name == "relu − tanh"
        assert found.estimate == pytest.approx(0.1, abs=0.02)
        assert found.better == "relu"
        assert effect(response(values, arms), "model.dropout").name == "0.0 − 0.2"  # as listed


def test_a_positive_effect_on_a_loss_is_said_to_be_worse() -> None:
    arms = product({"techniques": ["deep", "traditional"]})
    found = response(measured(arms, 4, lambda s: 1.0 * (s["techniques"] == "deep")), arms, higher_is_better=False)
    assert found.direction == "positive is worse"
    assert (found.effects[0].name, found.effects[0].better) == ("deep − traditional", "traditional")
    assert found.effects[0].estimate == pytest.approx(1.0, abs=0.05)


def test_what_a_seed_does_to_all_arms_alike_changes_neither_effects_nor_intervals() -> None:
    arms = product(TECHNIQUES)
    values = measured(arms, 3, lambda s: 0.1 * (s["techniques.gradient"] == "batch"))
    del values["arm-03", 1]
    shifted = {(arm, seed): value + 100 * seed for (arm, seed), value in values.items()}
    for before, after in zip(response(values, arms).effects, response(shifted, arms).effects, strict=True):
        assert after.estimate == pytest.approx(before.estimate, abs=1e-9)
        assert after.simultaneous_low == pytest.approx(before.simultaneous_low, abs=1e-9)


@pytest.mark.parametrize("size", [0.0, 0.005, 0.01, 0.02])
def test_no_level_is_better_where_the_simultaneous_interval_holds_zero(size: float) -> None:
    arms = product(TECHNIQUES)
    for found in response(measured(arms, 3, lambda s: size * (s["techniques.gradient"] == "batch")), arms).effects:
        assert found.simultaneous_low is not None
        assert found.simultaneous_high is not None
        assert found.adjusted_p is not None
        assert found.clear == (found.simultaneous_low > 0 or found.simultaneous_high < 0)
        assert found.clear == (found.adjusted_p < 0.05)
        assert (found.better is not None) == (found.clear and len(found.factors) == 1)


def test_all_pairs_of_three_levels_are_compared() -> None:
    arms = product({"model.dropout": [0.0, 0.1, 0.2]})
    found = response(measured(arms, 5, lambda s: 2 * s["model.dropout"]), arms)
    assert [e.name for e in found.effects] == ["0.1 − 0.0", "0.2 − 0.0", "0.2 − 0.1"]
    assert [e.estimate for e in found.effects] == pytest.approx([0.2, 0.4, 0.2], abs=0.03)
    assert [(v.source, v.degrees_of_freedom) for v in found.variance] == [
        (SEED, 4),
        ("model.dropout", 2),
        (RESIDUAL, 8),
    ]


def test_means_of_pairs_of_levels_are_those_of_the_cells() -> None:
    arms = product(TECHNIQUES)
    values = measured(arms, 3, lambda s: len("".join(s.values())) / 10)
    for mean in response(values, arms).means:
        matching = [
            value
            for (arm, _), value in values.items()
            if all(arms[arm][f] == level for f, level in zip(mean.factors, mean.levels, strict=True))
        ]
        assert mean.mean == pytest.approx(statistics.fmean(matching))
        assert mean.low is not None
        assert mean.low < mean.mean


def test_a_clear_interaction_is_pointed_at() -> None:
    arms = product(TECHNIQUES)
    both = lambda s: 0.3 * (s["techniques.activation"] == "relu") * (s["techniques.initialization"] == "normalized")  # noqa: E731
    found = response(measured(arms, 3, both), arms)
    interaction = effect(found, "techniques.activation", "techniques.initialization")
    assert interaction.estimate == pytest.approx(0.3, abs=0.05)
    assert interaction.name == "(relu − tanh) × (normalized − constant)"
    assert found.notes == [
        "what techniques.activation does depends on techniques.initialization: "
        "their effects are means over the other's levels"
    ]


def test_sums_of_squares_of_a_balanced_sweep_add_up() -> None:
    arms = product(TECHNIQUES)
    found = response(measured(arms, 3, lambda s: 0.1 * (s["techniques.gradient"] == "batch")), arms)
    assert sum(row.eta_squared or 0 for row in found.variance) == pytest.approx(1)
    assert found.variance[-2].source == OTHER
    assert sum(row.degrees_of_freedom for row in found.variance) == 23


# ------------------------------------------------------------------------------------- not applicable, failed, aliased


def fm_and_nets() -> dict[str, dict[str, Any]]:
    nets = product({"model": [{"type": "mlp"}, {"type": "cnn"}], "techniques.activation": ["tanh", "relu"]})
    return {**nets, "fm": {"model": {"type": "fm"}}}


def test_a_factor_that_does_not_apply_everywhere_is_estimated_where_it_does() -> None:
    arms = fm_and_nets()
    truth = {"arm-00": 0.1, "arm-01": 0.2, "arm-02": 0.3, "arm-03": 0.6, "fm": 0.9}
    values = {(arm, seed): truth[arm] + seed for arm in arms for seed in range(3)}
    found = response(values, arms)
    assert effect(found, "techniques.activation").estimate == pytest.approx((0.1 + 0.3) / 2)
    assert effect(found, "model", "techniques.activation").estimate == pytest.approx(0.3 - 0.1)
    models = {e.name: e.estimate for e in found.effects if e.factors == ("model",)}
    assert models == pytest.approx({"cnn − mlp": 0.45 - 0.15, "fm − mlp": 0.9 - 0.15, "fm − cnn": 0.9 - 0.45})
    assert found.not_estimable == {}


def test_one_model_with_and_one_without_a_technique_have_no_interaction() -> None:
    arms = {name: s for name, s in fm_and_nets().items() if s["model"] != {"type": "cnn"}}
    found = response(measured(arms, 3, lambda s: 0.0), arms)
    assert {e.factors for e in found.effects} == {("model",), ("techniques.activation",)}
    assert found.not_estimable == {}


def test_an_arm_that_failed_altogether_takes_the_interaction_with_it_by_name() -> None:
    arms = product({"a": [0, 1], "b": [0, 1]})
    values = {key: v for key, v in measured(arms, 4, lambda s: 0.5 * s["a"]).items() if key[0] != "arm-03"}
    found = response(values, arms)
    assert effect(found, "a").estimate == pytest.approx(0.5, abs=0.02)
    note = "a × b cannot be told from a and b with these trainings: what is shown for a and b holds both"
    assert found.not_estimable == {"a × b": note}
    assert note in found.notes


def test_a_level_without_any_result_is_named() -> None:
    arms = product({"a": [0, 1], "b": ["x", "y", "z"]})
    values = measured(arms, 3, lambda s: 0.0)
    no_z = response({key: v for key, v in values.items() if arms[key[0]]["b"] != "z"}, arms)
    assert no_z.notes == ["b: no training has a value at z; nothing is said of it"]
    assert [e.name for e in no_z.effects if e.factors == ("b",)] == ["y − x"]
    only_0 = response({key: v for key, v in values.items() if arms[key[0]]["a"] == 0}, arms)
    assert only_0.not_estimable == {"a": "a: its effect is not known, since no training has a value at 1"}
    assert {e.factors for e in only_0.effects} == {("b",)}


def test_what_a_fraction_cannot_tell_apart_is_named() -> None:
    design = plan_design({name: [0, 1] for name in "abc"}, resolution=3)
    arms = {arm.name: arm.settings for arm in design.arms}
    found = response(measured(arms, 3, lambda s: 0.2 * s["a"]), arms)
    assert [e.factors for e in found.effects] == [("a",), ("b",), ("c",)]
    assert set(found.not_estimable) == {"a × b", "a × c", "b × c"}
    assert "b × c cannot be told from a with" in found.not_estimable["b × c"]
    assert found.residual_degrees_of_freedom == 6  # (4 arms - 1) * (3 seeds - 1)


def test_a_factor_that_changes_with_the_seed_only_is_not_estimated() -> None:
    arms = product({"a": [0, 1]})
    found = response({("arm-00", 0): 1.0, ("arm-00", 1): 1.1, ("arm-01", 2): 2.0, ("arm-01", 3): 2.1}, arms)
    assert found.effects == []
    assert "a cannot be told from seed" in found.not_estimable["a"]


# -------------------------------------------------------------------------------------------------- little or no data


def test_one_seed_takes_interactions_of_three_factors_for_chance() -> None:
    arms = product({name: [0, 1] for name in "abcd"})
    found = response(measured(arms, 1, lambda s: 0.3 * s["a"]), arms)
    assert found.residual_degrees_of_freedom == 5
    assert effect(found, "a").better == "1"
    assert found.notes == [
        "one value for each combination: interactions of three and more factors (5 degrees of freedom) are taken for "
        "chance"
    ]


def test_one_seed_of_two_factors_gives_effects_without_intervals() -> None:
    arms = product({"a": [0, 1], "b": [0, 1]})
    found = response({("arm-00", 0): 1.0, ("arm-01", 0): 2.0, ("arm-02", 0): 4.0, ("arm-03", 0): 9.0}, arms)
    assert [e.estimate for e in found.effects] == pytest.approx([5.0, 3.0, 4.0])
    assert all((e.low, e.p, e.clear, e.better) == (None, None, False, None) for e in found.effects)
    assert found.residual_std is None
    assert "nothing is repeated, so nothing tells of chance" in found.notes[0]


def test_equal_values_have_no_effect_and_no_share() -> None:
    arms = product(TECHNIQUES)
    found = response({(arm, seed): 0.1 + 0.2 for arm in arms for seed in range(3)}, arms)
    assert all((e.estimate, e.low, e.high, e.clear) == (0.0, 0.0, 0.0, False) for e in found.effects)
    assert all(row.eta_squared is None for row in found.variance)
    assert found.notes == ["all values are the same"]


def test_repetitions_that_do_not_differ_are_pointed_at() -> None:
    arms = product({"a": [0, 1], "b": [0, 1]})
    found = response({(arm, seed): 0.1 * s["a"] + 0.7 for arm, s in arms.items() for seed in range(3)}, arms)
    assert effect(found, "a").estimate == pytest.approx(0.1)
    assert effect(found, "b").estimate == 0.0  # not 1e-17, which would be clear with no noise at all
    assert not effect(found, "b").clear
    assert found.notes == ["repetitions do not differ at all: intervals have no width, and tell nothing of chance"]


@pytest.mark.parametrize("factors", [{"a": [0]}, {"a": [0, 1]}])
def test_a_sweep_without_a_result_says_so(factors: dict[str, list[Any]]) -> None:
    arms = product(factors)
    found = response({}, arms)
    assert (found.cells, found.effects, found.notes) == (0, [], ["no training has a value"])
    ledger = summarize([], arms=arms, goal=Goal("accuracy", higher_is_better=True))
    assert (ledger.winner, ledger.best_run) == (None, None)


def test_a_single_training_and_a_single_arm_have_no_effects() -> None:
    arms = product({"a": [0]})
    for seeds in (1, 3):
        found = response(measured(arms, seeds, lambda s: 1.0), arms)
        assert (found.cells, found.effects, found.means) == (seeds, [], [])


def test_hundreds_of_cells_with_failures_are_analyzed() -> None:
    arms = product({name: [0, 1] for name in "abcdef"})
    values = measured(arms, 8, lambda s: 0.2 * s["a"] - 0.1 * s["b"] * s["f"])
    for key in random.Random(1).sample(sorted(values), 40):
        del values[key]
    found = response(values, arms)
    assert found.residual_degrees_of_freedom == 64 * 8 - 40 - 64 - 7
    assert {e.factors for e in found.effects if e.clear} == {("a",), ("b",), ("f",), ("b", "f")}
    assert effect(found, "b", "f").estimate == pytest.approx(-0.1, abs=0.01)


# ------------------------------------------------------------------------------------------------------ whole ledgers


def trained(arms: dict[str, dict[str, Any]], *, seeds: int = 3) -> list[Cell]:
    """Curves that rise to a value of their own by a half each epoch; relu is better, a stochastic epoch is faster."""
    cells = []
    source = random.Random(0)
    for arm, settings in arms.items():
        epoch_s = 1.0 if settings.get("techniques.gradient") == "stochastic" else 2.0
        for seed in range(seeds):
            best = 0.7 + 0.2 * (settings.get("techniques.activation") == "relu") + source.gauss(0, 0.001)
            history = [{"accuracy": best * (1 - 0.5**epoch), "seconds": epoch_s} for epoch in range(1, 9)]
            cells.append(
                Cell(
                    arm=arm,
                    seed=seed,
                    run=f"{arm}-{seed}",
                    state="finished",
                    metrics={"accuracy": best},
                    seconds=8 * epoch_s + source.gauss(1, 0.01),
                    history=history,
                )
            )
    return cells


def test_the_ledger_holds_quality_seconds_and_dollars_and_survives_json() -> None:
    arms = product(TECHNIQUES)
    prices = {arm: 3.6 if s["techniques.gradient"] == "batch" else 7.2 for arm, s in arms.items()}
    ledger = summarize(
        trained(arms), arms=arms, goal=Goal("accuracy", higher_is_better=True, target=0.6), dollars_per_hour=prices
    )
    by_name = {one.name: one for one in ledger.responses}
    assert list(by_name) == ["accuracy", "seconds", "seconds_to_target", "dollars", "dollars_to_target"]
    assert ledger.factors == TECHNIQUES
    assert effect(by_name["accuracy"], "techniques.activation").better == "relu"
    assert effect(by_name["seconds"], "techniques.gradient").estimate == pytest.approx(-8, abs=0.05)
    # tanh reaches 0.6 in epoch 3, relu in epoch 2
    assert effect(by_name["seconds_to_target"], "techniques.activation").estimate == pytest.approx(-1.5)
    assert effect(by_name["dollars_to_target"], "techniques.gradient").estimate == 0.0  # half the time, twice the price
    assert [row.reached for row in ledger.arms] == [3] * 8
    assert set(ledger.arms[0].responses) == set(by_name)
    assert Ledger.model_validate_json(ledger.model_dump_json()) == ledger


def test_without_prices_and_target_nothing_is_said_of_them() -> None:
    arms = product(TECHNIQUES)
    ledger = summarize(trained(arms), arms=arms, goal=Goal("accuracy", higher_is_better=True))
    assert [one.name for one in ledger.responses] == ["accuracy", "seconds"]
    assert ledger.arms[0].reached is None


def test_traditional_and_deep_are_compared_as_a_whole() -> None:
    arms = product({"model.dropout": [0.0, 0.2], **TECHNIQUES})
    ledger = summarize(trained(arms), arms=arms, goal=Goal("accuracy", higher_is_better=True))
    quality, seconds = ledger.traditional_against_deep
    assert quality.techniques == tuple(TECHNIQUES)
    assert [(arms[a], arms[b]) for a, b in quality.arms] == [
        (
            {"model.dropout": dropout} | {name: levels[0] for name, levels in TECHNIQUES.items()},
            {"model.dropout": dropout} | {name: levels[1] for name, levels in TECHNIQUES.items()},
        )
        for dropout in (0.0, 0.2)
    ]
    assert quality.estimate == pytest.approx(0.2, abs=0.005)
    assert (quality.seeds, quality.better, seconds.better) == (3, "deep", "deep")


@pytest.mark.parametrize(
    "factors",
    [
        {"techniques.activation": ["tanh", "relu"]},
        {"techniques.activation": ["relu", "gelu"], "techniques.gradient": ["batch", "stochastic"]},
        {"a": [0, 1], "b": [0, 1]},
    ],
)
def test_one_technique_alone_is_not_called_traditional_against_deep(factors: dict[str, list[Any]]) -> None:
    arms = product(factors)
    assert (
        summarize(trained(arms), arms=arms, goal=Goal("accuracy", higher_is_better=True)).traditional_against_deep == []
    )


def test_failed_arms_are_named_and_not_imputed() -> None:
    arms = product(TECHNIQUES)
    cells = trained(arms)
    broken = [
        c.model_copy(update={"state": "failed", "metrics": {}, "error": "Traceback\n  ...\nNaN loss"})
        for c in cells[:2]
    ]
    ledger = summarize(broken + cells[2:], arms=arms, goal=Goal("accuracy", higher_is_better=True, target=0.6))
    assert ledger.notes == [
        "arm-00 (techniques.activation = tanh, techniques.initialization = constant, techniques.gradient = batch): "
        "2 of 3 trainings failed and are left out: NaN loss"
    ]
    assert {(one.cells, one.missing) for one in ledger.responses} == {(22, 2)}


# -------------------------------------------------------------------------------------------------- time to a target

CURVE = [{"accuracy": 0.5, "seconds": 2.0}, {"accuracy": 0.9, "seconds": 3.0}, {"accuracy": 0.8, "seconds": 4.0}]


def test_the_way_to_a_target_ends_with_the_first_epoch_that_reaches_it() -> None:
    assert seconds_to_target(CURVE, Goal("accuracy", True, 0.8)) == 5.0
    assert seconds_to_target(CURVE, Goal("accuracy", True, 0.5)) == 2.0
    assert seconds_to_target(CURVE, Goal("accuracy", True, 0.95)) is None
    assert seconds_to_target([], Goal("accuracy", True, 0.95)) is None
    loss = [{"loss": math.nan, "seconds": 1.0}, {"loss": 0.4, "seconds": 1.0}, {"loss": 0.2, "seconds": 1.0}]
    assert seconds_to_target(loss, Goal("loss", False, 0.3)) == 3.0


def test_times_are_counted_up_to_where_the_first_training_gave_up() -> None:
    found = {("a", 0): 3.0, ("a", 1): 9.0, ("b", 0): None, ("b", 1): None}
    spent = {("a", 0): 20.0, ("a", 1): 20.0, ("b", 0): 8.0, ("b", 1): 12.0}
    assert restrict(found, spent) == ({("a", 0): 3.0, ("a", 1): 8.0, ("b", 0): 8.0, ("b", 1): 8.0}, 8.0)
    assert restrict({("a", 0): 3.0}, spent) == ({("a", 0): 3.0}, None)


def test_censored_times_are_said_to_be() -> None:
    arms = product(TECHNIQUES)
    ledger = summarize(trained(arms), arms=arms, goal=Goal("accuracy", higher_is_better=True, target=0.8))
    found = next(one for one in ledger.responses if one.name == "seconds_to_target")
    assert (found.cells, found.censored, found.horizon) == (24, 12, 8.0)  # tanh never reaches 0.8; 8 epochs of 1 s
    assert found.notes[-1] == (
        "12 of 24 trainings never reached the target: all are counted up to 8 s, where the first of these ended; "
        "6 others reached it later"
    )
    assert sorted(row.reached or 0 for row in ledger.arms) == [0, 0, 0, 0, 3, 3, 3, 3]


def test_the_time_of_seeds_that_were_trained_together_is_one_measurement() -> None:
    arms = product(TECHNIQUES)
    times = {arm: random.Random(arm).random() for arm in arms}  # nothing but chance, the same for all seeds
    shared = [c.model_copy(update={"seconds": times[c.arm]}) for c in trained(arms)]

    def seconds_of(**options: Any) -> tuple[Ledger, Response]:
        ledger = summarize(shared, arms=arms, goal=Goal("accuracy", higher_is_better=True), **options)
        return ledger, next(one for one in ledger.responses if one.name == "seconds")

    assert all(e.clear for e in seconds_of()[1].effects)  # as if repeating it had shown this again and again
    ledger, found = seconds_of(together=[[0, 1, 2]])
    assert not any(e.clear for e in found.effects)
    assert (found.cells, found.missing, found.residual_degrees_of_freedom) == (24, 0, 1)
    assert found.notes[-1].startswith("seeds that are trained together have one time: 24 trainings are 8 measurements")
    assert all(row.responses["seconds"].low is None for row in ledger.arms)
    assert [c.low is None for c in ledger.traditional_against_deep] == [False, True]
    assert ledger.responses[0] == seconds_of()[0].responses[0]


def test_a_target_that_none_reached_gives_no_response() -> None:
    arms = product(TECHNIQUES)
    ledger = summarize(trained(arms), arms=arms, goal=Goal("accuracy", higher_is_better=True, target=0.99))
    assert [one.name for one in ledger.responses] == ["accuracy", "seconds"]
    assert ledger.notes == ["no training reached accuracy 0.99: nothing is said of the way to it"]
    bare = [c.model_copy(update={"history": []}) for c in trained(arms)]
    ledger = summarize(bare, arms=arms, goal=Goal("accuracy", higher_is_better=True, target=0.5))
    assert ledger.notes == ["no training has a learning curve of accuracy: nothing is said of the way to 0.5"]
