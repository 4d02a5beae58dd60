"""The ledger's promises, in hundreds of synthetic sweeps whose truth is known, and against statsmodels."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from orchestrator.evidence.design import plan_design
from orchestrator.evidence.effects import Effect, Response, analyze
from orchestrator.evidence.ledger import Goal, summarize
from orchestrator.evidence.record import Cell

SWEEPS = 400
Arms = dict[str, dict[str, Any]]
Values = dict[tuple[str, int], float]


def product(factors: Mapping[str, Sequence[Any]]) -> Arms:
    return {
        f"arm-{i:02d}": dict(zip(factors, v, strict=True)) for i, v in enumerate(itertools.product(*factors.values()))
    }


def simulated(
    arms: Arms,
    truth: Mapping[str, float],
    *,
    seeds: int,
    source: np.random.Generator,
    noise: Mapping[str, float] | float = 1.0,
    missing: float = 0.0,
) -> Values:
    """One sweep of two-level factors with one-letter names.

    Args:
        truth: product of factors, such as ``ab`` -> the coefficient of its column of ±1.
        noise: standard deviation, of all arms or of each.
        missing: chance of a cell to fail.
    """
    values = {}
    for seed in range(seeds):
        block = source.normal(0, 2)
        for arm, settings in arms.items():
            mean = sum(size * math.prod(2 * settings[name] - 1 for name in names) for names, size in truth.items())
            spread = noise if isinstance(noise, float) else noise[arm]
            value = mean + block + source.normal(0, spread)
            if source.random() >= missing:
                values[arm, seed] = value
    return values


def respond(values: Values, arms: Arms) -> Response:
    return analyze(values, arms=arms, name="accuracy", higher_is_better=True)


def true_effect(effect: Effect, truth: Mapping[str, float]) -> float:
    """A difference of two levels is twice the coefficient, a difference of differences four times."""
    return 2.0 ** len(effect.factors) * truth.get("".join(effect.factors), 0.0)


def binomial_error(chance: float, trials: int) -> float:
    return math.sqrt(chance * (1 - chance) / trials)


# abc is there, too: an interaction that the ledger does not list must not disturb those that it does
TRUTH = {"a": 1.0, "b": -0.4, "ab": 0.3, "abc": 0.5}


@pytest.mark.parametrize(
    ("missing", "spreads"),
    [
        pytest.param(0.0, (1.0, 1.0), id="balanced"),
        pytest.param(0.1, (1.0, 1.0), id="failed cells"),
        pytest.param(0.0, (0.3, 1.5), id="half of the arms spread five times as much"),
    ],
)
def test_the_intervals_cover_the_truth_as_often_as_they_say(missing: float, spreads: tuple[float, float]) -> None:
    arms = product({name: [0, 1] for name in "abc"})
    noise = {arm: spreads[settings["c"]] for arm, settings in arms.items()}
    source = np.random.default_rng(1)
    own: dict[tuple[str, ...], int] = {}
    together = 0
    for _ in range(SWEEPS):
        values = simulated(arms, TRUTH, seeds=5, source=source, noise=noise, missing=missing)
        effects = respond(values, arms).effects
        assert len(effects) == 6
        for effect in effects:
            assert effect.low is not None
            assert effect.high is not None
            own[effect.factors] = own.get(effect.factors, 0) + (effect.low <= true_effect(effect, TRUTH) <= effect.high)
        together += all(
            (e.simultaneous_low or 0) <= true_effect(e, TRUTH) <= (e.simultaneous_high or 0) for e in effects
        )
    assert 0.93 <= sum(own.values()) / (6 * SWEEPS) <= 0.97
    for covered in own.values():
        assert covered / SWEEPS == pytest.approx(0.95, abs=4 * binomial_error(0.95, SWEEPS))
    assert together / SWEEPS == pytest.approx(0.95, abs=4 * binomial_error(0.95, SWEEPS))


@pytest.mark.parametrize("factors", ["a", "ab"])
def test_when_nothing_matters_a_winner_is_declared_in_at_most_one_of_twenty_sweeps(factors: str) -> None:
    arms = product({name: [0, 1] for name in factors})
    source = np.random.default_rng(1)
    winners = better = 0
    for _ in range(SWEEPS):
        cells = [
            Cell(arm=arm, seed=seed, run="", state="finished", metrics={"accuracy": value}, seconds=1.0)
            for (arm, seed), value in simulated(arms, {}, seeds=4, source=source).items()
        ]
        ledger = summarize(cells, arms=arms, goal=Goal("accuracy", higher_is_better=True))
        winners += ledger.winner is not None
        better += any(effect.clear for effect in ledger.responses[0].effects)
    assert winners / SWEEPS <= 0.05 + 3 * binomial_error(0.05, SWEEPS)
    assert better / SWEEPS <= 0.05 + 3 * binomial_error(0.05, SWEEPS)


def test_shares_of_the_variance_are_those_that_the_data_was_made_with() -> None:
    shares = {"a": 0.79, "b": 0.14, "c": 0.02, "ab": 0.03}  # and 0.02 noise
    arms = product({name: [0, 1] for name in "abc"})
    truth = {name: math.sqrt(share) for name, share in shares.items()}
    source = np.random.default_rng(0)
    values = simulated(arms, truth, seeds=10, source=source, noise=math.sqrt(0.02))
    blocks = {seed: np.mean([values[arm, seed] for arm in arms]) for seed in range(10)}
    found = respond({(arm, seed): v - float(blocks[seed]) for (arm, seed), v in values.items()}, arms)
    share = {row.source: row.eta_squared for row in found.variance}
    assert [share[s] for s in ("a", "b", "c", "a × b")] == pytest.approx([0.79, 0.14, 0.02, 0.03], abs=0.02)
    assert share["residual"] == pytest.approx(0.02, abs=0.01)
    assert [e.factors for e in found.effects if e.clear] == [("a",), ("b",), ("c",), ("a", "b")]


def test_a_fraction_of_resolution_five_finds_what_all_combinations_would() -> None:
    design = plan_design({name: [0, 1] for name in "abcde"}, resolution=5)
    arms = {arm.name: arm.settings for arm in design.arms}
    truth = {"a": 1.0, "e": -0.5, "be": 0.5}
    values = simulated(arms, truth, seeds=5, source=np.random.default_rng(0), noise=0.2)
    found = analyze(values, arms=arms, name="accuracy", higher_is_better=True, factors=design.factors)
    assert len(found.effects) == 15
    assert {e.factors for e in found.effects if e.clear} == {("a",), ("e",), ("b", "e")}
    for effect in found.effects:
        assert effect.estimate == pytest.approx(true_effect(effect, truth), abs=0.3)


# ---------------------------------------------------------------------------------------------- against statsmodels


@pytest.mark.parametrize("missing", [0, 7], ids=["balanced", "failed cells"])
def test_estimates_intervals_and_shares_equal_those_of_statsmodels(missing: int) -> None:
    factors = {"a": ["x", "y"], "b": ["p", "q", "r"], "c": ["u", "v"]}
    arms = product(factors)
    source = np.random.default_rng(3)
    values = {(arm, seed): 5 + source.normal() + 0.3 * i for i, arm in enumerate(arms) for seed in range(4)}
    for index in source.choice(len(values), missing, replace=False):
        del values[sorted(product_keys(arms, 4))[index]]
    found = respond(values, arms)
    reference = Reference(values, arms, "C(seed, Sum) + C(a, Sum) * C(b, Sum) * C(c, Sum)")
    assert len(found.effects) == 1 + 3 + 1 + 2 + 1 + 2
    for effect in found.effects:
        assert_same(effect, reference, factors)
    assert_same_table(found, reference)


def test_with_one_seed_estimates_equal_those_of_statsmodels_without_higher_interactions() -> None:
    factors = {name: [0, 1] for name in "abcd"}
    arms = product(factors)
    source = np.random.default_rng(4)
    values = {(arm, 0): source.normal() for arm in arms}
    del values["arm-05", 0]
    reference = Reference(values, arms, "(C(a, Sum) + C(b, Sum) + C(c, Sum) + C(d, Sum)) ** 2")
    found = respond(values, arms)
    assert found.residual_degrees_of_freedom == 4
    for effect in found.effects:
        assert_same(effect, reference, factors)
    assert_same_table(found, reference)


def product_keys(arms: Arms, seeds: int) -> list[tuple[str, int]]:
    return [(arm, seed) for arm in arms for seed in range(seeds)]


class Reference:
    """The same sweep, fitted by statsmodels from a formula."""

    def __init__(self, values: Values, arms: Arms, formula: str) -> None:
        import pandas as pd
        import statsmodels.formula.api as smf
        from statsmodels.stats.anova import anova_lm

        rows = [{"y": v, "seed": seed, **arms[arm]} for (arm, seed), v in values.items()]
        self.fit = smf.ols(f"y ~ {formula}", pd.DataFrame(rows)).fit()
        self.table = anova_lm(self.fit, typ=3)
        self.seeds = sorted({seed for _, seed in values})

    def marginal(self, factors: Mapping[str, Sequence[Any]], at: Mapping[str, Any]) -> Any:
        """Weights of the coefficients whose sum is the mean prediction over a full grid with ``at`` fixed."""
        import pandas as pd
        import patsy  # type: ignore[import-untyped]

        levels = {"seed": self.seeds} | {name: [at[name]] if name in at else v for name, v in factors.items()}
        grid = pd.DataFrame(list(itertools.product(*levels.values())), columns=list(levels))
        data = self.fit.model.data
        info = data.model_spec if hasattr(data, "model_spec") else data.design_info  # 0.15 renamed it
        return np.asarray(patsy.dmatrix(info, grid)).mean(axis=0)


def assert_same(effect: Effect, reference: Reference, factors: Mapping[str, Sequence[Any]]) -> None:
    """An effect is a difference, or a difference of differences, of statsmodels' marginal means."""
    weights = 0.0
    for ends in itertools.product((False, True), repeat=len(effect.factors)):
        levels = {
            name: next(v for v in factors[name] if str(v) == (to if end else base))
            for name, base, to, end in zip(effect.factors, effect.base, effect.to, ends, strict=True)
        }
        weights = weights + (-1) ** ends.count(False) * reference.marginal(factors, levels)
    expected = reference.fit.t_test(weights)
    assert effect.estimate == pytest.approx(expected.effect.item(), rel=1e-9, abs=1e-9)
    assert [effect.low, effect.high] == pytest.approx(list(expected.conf_int()[0]), rel=1e-9, abs=1e-9)
    assert effect.p == pytest.approx(float(expected.pvalue), rel=1e-9, abs=1e-9)


def assert_same_table(found: Response, reference: Reference) -> None:
    """Rows of one or two factors, the seed and the residual of a type III analysis of variance."""
    for row in found.variance:
        name = ":".join(f"C({factor}, Sum)" for factor in row.factors)
        name = name or {"seed": "C(seed, Sum)", "residual": "Residual"}.get(row.source, "")
        if name:
            expected = reference.table.loc[name]
            assert row.degrees_of_freedom == expected["df"]
            assert row.sum_of_squares == pytest.approx(expected["sum_sq"], rel=1e-9, abs=1e-9)
            if row.f is not None:
                assert [row.f, row.p] == pytest.approx([expected["F"], expected["PR(>F)"]], rel=1e-9, abs=1e-9)
