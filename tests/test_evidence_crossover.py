"""The model size from which a GPU pays: in simulated sweeps whose truth is known, and against statsmodels."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from orchestrator.evidence.crossover import Crossover, estimate_crossover, fieller_interval, fit_line, size_text
from orchestrator.evidence.ledger import Goal, summarize
from orchestrator.evidence.record import Cell

SWEEPS = 400
TRUTH = 200_000  # parameters at which both cost the same
HIDDEN = {64: 12_000, 256: 85_000, 1024: 1_100_000, 2048: 4_200_000}
FACTORS: dict[str, list[Any]] = {
    "techniques.processor": ["cpu", "gpu"],
    "model.hidden": list(HIDDEN),
    "techniques.activation": ["tanh", "relu"],
}
Costs = dict[tuple[str, int], float]


def arms_of(factors: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    return {
        f"arm-{i:02d}": dict(zip(factors, v, strict=True)) for i, v in enumerate(itertools.product(*factors.values()))
    }


ARMS = arms_of(FACTORS)
PARAMETERS = {arm: HIDDEN[settings["model.hidden"]] for arm, settings in ARMS.items()}


def simulated(
    source: np.random.Generator, *, truth: float = TRUTH, slope: float = -0.5, noise: float = 0.2, between: float = 0.0
) -> Costs:
    """Costs of one sweep of 4 seeds: the GPU's over the CPU's is (parameters / truth)^slope, times noise.

    Args:
        source: of chance.
        truth: size at which both cost the same.
        slope: of the logarithm of the ratio.
        noise: standard deviation of the logarithm of the ratio between seeds.
        between: the same between models, alike for all seeds.
    """
    model = {(s["model.hidden"], s["techniques.activation"]): source.normal(0, between) for s in ARMS.values()}
    costs: Costs = {}
    for (arm, settings), seed in itertools.product(ARMS.items(), range(4)):
        log_cost = math.log(PARAMETERS[arm]) + seed / 10 + source.normal(0, noise / math.sqrt(2))
        if settings["techniques.processor"] == "gpu":
            log_cost += slope * math.log(PARAMETERS[arm] / truth)
            log_cost += model[settings["model.hidden"], settings["techniques.activation"]]
        costs[arm, seed] = math.exp(log_cost)
    return costs


def estimate(costs: Costs, arms: Mapping[str, Mapping[str, Any]] = ARMS) -> Crossover:
    seeds = {seed for _, seed in costs}
    found = estimate_crossover(costs, arms=arms, parameters=PARAMETERS, cost="dollars", seeds=seeds)
    assert found is not None
    return found


def test_the_interval_of_a_line_covers_its_crossing_as_often_as_it_says() -> None:
    source = np.random.default_rng(1)
    x = np.log(np.repeat(list(HIDDEN.values()), 8))
    covered = 0
    for _ in range(SWEEPS):
        bounds = fieller_interval(fit_line(x, -0.5 * (x - math.log(TRUTH)) + source.normal(0, 0.4, len(x))))
        assert bounds is not None
        covered += bounds[0] <= math.log(TRUTH) <= bounds[1]
    assert 0.93 <= covered / SWEEPS <= 0.97


@pytest.mark.parametrize(
    ("noise", "between", "most"),
    [
        pytest.param(0.2, 0.0, 0.985, id="seeds differ; needless remedies against lack of fit make it wide"),
        pytest.param(0.2, 0.1, 0.975, id="models differ half as much as seeds"),
        pytest.param(0.05, 0.3, 0.97, id="models differ, seeds hardly"),
    ],
)
def test_the_interval_of_a_sweep_covers_the_size_at_least_as_often(noise: float, between: float, most: float) -> None:
    source = np.random.default_rng(0)
    covered = 0
    for _ in range(2 * SWEEPS):
        found = estimate(simulated(source, noise=noise, between=between))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= TRUTH <= found.high
    assert 0.93 <= covered / (2 * SWEEPS) <= most


def test_where_nothing_depends_on_size_an_answer_is_given_in_at_most_one_of_twenty_sweeps() -> None:
    source = np.random.default_rng(5)
    found = [estimate(simulated(source, truth=1.0, slope=0.0)) for _ in range(SWEEPS)]
    assert sum(f.gpu_pays is not None for f in found) / SWEEPS <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / SWEEPS)
    assert "not to be told: the interval is unbounded" in next(f for f in found if f.gpu_pays is None).conclusion


def test_the_line_and_its_interval_agree_with_statsmodels() -> None:
    import statsmodels.api as sm

    source = np.random.default_rng(0)
    x = np.log(np.repeat(list(HIDDEN.values()), 4))
    y = 3 - 0.3 * x + source.normal(0, 0.3, len(x))
    line, reference = fit_line(x, y), sm.OLS(y, sm.add_constant(x)).fit()
    intercept = line.middle - line.slope * line.center
    assert [intercept, line.slope] == pytest.approx(list(reference.params), rel=1e-9)
    bounds = fieller_interval(line)
    assert bounds is not None
    band = reference.get_prediction(sm.add_constant(np.array(bounds), has_constant="add")).conf_int()
    assert band[0, 0] == pytest.approx(0, abs=1e-9) or band[0, 1] == pytest.approx(0, abs=1e-9)
    assert band[1, 0] == pytest.approx(0, abs=1e-9) or band[1, 1] == pytest.approx(0, abs=1e-9)


def test_the_answer_is_a_sentence_with_an_interval() -> None:
    found = estimate(simulated(np.random.default_rng(0)))
    assert found.gpu_pays == "from"
    assert found.low is not None
    assert found.high is not None
    ends = f"(95 %: {size_text(found.low)} to {size_text(found.high)})"
    assert found.parameters is not None
    assert found.conclusion == f"the GPU pays from about {size_text(found.parameters)} parameters {ends}"
    assert (found.pairs, found.missing, found.smallest, found.largest) == (32, 0, 12_000, 4_200_000)
    assert len(found.ratios) == 8
    assert [found.line[0].parameters, found.line[-1].parameters] == pytest.approx([12_000, 4_200_000])


def test_a_gpu_that_pays_for_small_models_only_is_said_to() -> None:
    found = estimate(simulated(np.random.default_rng(0), slope=0.5))
    assert found.gpu_pays == "up to"
    assert "the GPU pays up to about" in found.conclusion


@pytest.mark.parametrize(("truth", "pays", "word"), [(50.0, "always", "less"), (5e9, "never", "more")])
def test_without_a_crossover_within_the_sizes_tried_none_is_claimed(truth: float, pays: str, word: str) -> None:
    found = estimate(simulated(np.random.default_rng(0), truth=truth))
    assert found.gpu_pays == pays
    assert f"the GPU costs {word} at every size tried (12 k to 4.2 M parameters)" in found.conclusion
    assert "If the line went on" in found.conclusion
    assert "which was not tried" in found.conclusion


def test_a_size_beyond_those_tried_is_said_to_be_beyond() -> None:
    found = estimate(simulated(np.random.default_rng(3), truth=8e6, noise=1.0))
    assert found.parameters is not None
    assert found.parameters > found.largest
    assert found.gpu_pays == "from"
    assert "that is beyond the sizes tried (12 k to 4.2 M parameters)" in found.conclusion


def test_one_size_tells_the_ratio_of_costs_and_no_crossover() -> None:
    arms = {arm: settings for arm, settings in ARMS.items() if settings["model.hidden"] == 64}
    found = estimate({k: v for k, v in simulated(np.random.default_rng(0)).items() if k[0] in arms}, arms)
    assert found.gpu_pays is None
    assert found.line == []
    assert "not to be told from one size: at 12 k parameters the GPU costs" in found.conclusion


def test_two_sizes_are_a_line_that_is_not_checked() -> None:
    arms = {arm: settings for arm, settings in ARMS.items() if settings["model.hidden"] in (64, 2048)}
    found = estimate({k: v for k, v in simulated(np.random.default_rng(0)).items() if k[0] in arms}, arms)
    assert found.gpu_pays == "from"
    assert any(note.startswith("two sizes") for note in found.notes)


def test_two_trainings_on_each_processor_have_no_interval() -> None:
    arms = {
        arm: s for arm, s in ARMS.items() if s["model.hidden"] in (64, 2048) and s["techniques.activation"] == "relu"
    }
    costs = {k: v for k, v in simulated(np.random.default_rng(0)).items() if k[0] in arms and k[1] == 0}
    found = estimate(costs, arms)
    assert found.parameters is None
    assert found.conclusion.startswith("not to be told: nothing is repeated")


def test_a_pair_that_lacks_a_cost_is_left_out_and_counted() -> None:
    costs = simulated(np.random.default_rng(0))
    del costs["arm-00", 0]  # on the CPU; its pair has the seed still
    del costs["arm-08", 1]
    found = estimate(costs)
    assert (found.pairs, found.missing) == (30, 2)
    assert found.gpu_pays == "from"
    assert any(note.startswith("2 pairs of trainings") for note in found.notes)
    only_cpu: Costs = {k: v for k, v in costs.items() if ARMS[k[0]]["techniques.processor"] == "cpu"}
    assert "no pair of trainings on CPU and GPU has both costs" in estimate(only_cpu).conclusion


def test_models_off_the_line_count_once_each() -> None:
    found = estimate(simulated(np.random.default_rng(0), noise=0.01, between=0.5))
    assert any("models lie off the line" in note for note in found.notes)
    assert not estimate(simulated(np.random.default_rng(0))).notes


def test_arms_that_differ_in_more_than_the_processor_are_no_pair() -> None:
    arms: dict[str, dict[str, Any]] = {
        "a": {"techniques.processor": "cpu", "model.hidden": 64},
        "b": {"techniques.processor": "gpu", "model.hidden": 256},
    }
    costs: Costs = {("a", 0): 1.0, ("b", 0): 1.0}
    assert estimate_crossover(costs, arms=arms, parameters={"a": 1, "b": 2}, cost="seconds", seeds=[0]) is None


@pytest.mark.parametrize(
    ("value", "text"), [(840.0, "840"), (12_345.0, "12 k"), (999_900.0, "1 M"), (1.23e6, "1.2 M"), (4.5e11, "450 B")]
)
def test_sizes_are_written_with_the_digits_that_they_deserve(value: float, text: str) -> None:
    assert size_text(value) == text


# ------------------------------------------------------------------------------------------------------ in the ledger


def cells(seconds: Costs, *, to_target: float = 0.5) -> list[Cell]:
    """Trainings of two epochs; the first, which takes this share of the time, reaches 0.8 and the second 0.9."""
    return [
        Cell(
            arm=arm,
            seed=seed,
            run="",
            state="finished",
            metrics={"accuracy": 0.9},
            seconds=s,
            history=[
                {"accuracy": 0.8, "seconds": s * to_target},
                {"accuracy": 0.9, "seconds": s * (1 - to_target)},
            ],
        )
        for (arm, seed), s in seconds.items()
    ]


def crossover_of(found: list[Cell], *, target: float | None = None, **options: Any) -> Crossover | None:
    arms = {arm: dict(settings) for arm, settings in ARMS.items()}
    goal = Goal("accuracy", higher_is_better=True, target=target)
    return summarize(found, arms=arms, goal=goal, parameters=PARAMETERS, **options).crossover


def test_without_prices_the_ledger_compares_seconds_and_else_dollars() -> None:
    seconds = simulated(np.random.default_rng(0), noise=0.02)
    by_time = crossover_of(cells(seconds))
    price = {arm: 4.0 if s["techniques.processor"] == "gpu" else 1.0 for arm, s in ARMS.items()}
    by_price = crossover_of(cells(seconds), dollars_per_hour=price)
    assert by_time is not None
    assert by_price is not None
    assert (by_time.cost, by_price.cost) == ("seconds", "dollars")
    # at four times the price, the GPU must be four times as fast: with a slope of -1/2, 16 times the size
    assert by_time.parameters == pytest.approx(TRUTH, rel=0.05)
    assert by_price.parameters == pytest.approx(16 * TRUTH, rel=0.1)


def test_with_a_target_the_ledger_compares_the_way_to_it() -> None:
    seconds = simulated(np.random.default_rng(0), noise=0.02)
    found = crossover_of(cells(seconds), target=0.75)
    assert found is not None
    assert found.cost == "seconds_to_target"
    unreached = crossover_of(cells(seconds), target=0.95)
    assert unreached is not None
    assert unreached.cost == "seconds"


def test_time_that_seeds_share_is_one_measurement() -> None:
    seconds = simulated(np.random.default_rng(0), noise=0.02)
    shared = {(arm, seed): seconds[arm, 0] for arm, seed in seconds}
    found = crossover_of(cells(shared), together=[range(4)])
    assert found is not None
    assert (found.pairs, found.missing) == (8, 0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < TRUTH < found.high


def test_the_ledger_says_nothing_of_sizes_that_nobody_wrote_down() -> None:
    found = cells(simulated(np.random.default_rng(0)))
    arms = {arm: dict(settings) for arm, settings in ARMS.items()}
    assert summarize(found, arms=arms, goal=Goal("accuracy", higher_is_better=True)).crossover is None
