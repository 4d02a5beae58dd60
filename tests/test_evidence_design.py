"""The arms that a sweep trains, and what a fraction of them cannot tell apart."""

import itertools
import math
from typing import Any

import pytest

from cluster.errors import ConfigError
from orchestrator.evidence.design import GENERATORS, Design, level_name, plan_design, resolution_of

# NIST/SEMATECH e-Handbook, table 5.3.3.4.7 "Summary tables of useful fractional factorial designs"
PUBLISHED = {
    (3, 4): 3,
    (4, 8): 4,
    (5, 8): 3,
    (5, 16): 5,
    (6, 8): 3,
    (6, 16): 4,
    (6, 32): 6,
    (7, 8): 3,
    (7, 16): 4,
    (7, 32): 4,
    (7, 64): 7,
    (8, 16): 4,
    (8, 32): 4,
    (8, 64): 5,
    (8, 128): 8,
    (9, 16): 3,
    (9, 32): 4,
    (9, 64): 4,
    (9, 128): 6,
    (10, 16): 3,
    (10, 32): 4,
    (10, 64): 4,
    (10, 128): 5,
}


def factors(count: int) -> dict[str, list[Any]]:
    return {f"f{i}": [0, 1] for i in range(count)}


def signs(design: Design) -> list[list[int]]:
    return [[2 * value - 1 for value in arm.settings.values()] for arm in design.arms]


def test_without_a_resolution_all_combinations_are_arms_in_the_order_of_the_file() -> None:
    design = plan_design({"a": ["x", "y"], "b": [1, 2, 3]})
    assert [tuple(arm.settings.values()) for arm in design.arms] == list(itertools.product("xy", (1, 2, 3)))
    assert [arm.name for arm in design.arms] == [f"arm-0{i}" for i in range(6)]
    assert (design.resolution, design.aliases, design.generators, design.notes) == (None, [], [], [])


def test_arms_share_their_seeds_block_by_block() -> None:
    cells = plan_design({"a": [0, 1]}).cells([7, 8])
    assert [(arm.name, seed) for arm, seed in cells] == [("arm-00", 7), ("arm-01", 7), ("arm-00", 8), ("arm-01", 8)]


def test_a_level_named_twice_is_one_level() -> None:
    assert len(plan_design({"a": [0, 0, 1], "b": [False, 0]}).arms) == 4


def test_the_table_of_fractions_has_the_published_resolutions() -> None:
    found = {}
    for count, fractions in GENERATORS.items():
        for basic, generators in fractions.items():
            assert len(generators) == count - basic
            words = [
                sum(1 << "ABCDEFGHJK".index(letter) for letter in word) | 1 << (basic + i)
                for i, word in enumerate(generators)
            ]
            found[count, 2**basic] = resolution_of(words)
    assert found == PUBLISHED


@pytest.mark.parametrize("resolution", [3, 4, 5])
@pytest.mark.parametrize("count", range(3, 11))
def test_a_fraction_is_the_smallest_of_its_resolution_and_keeps_what_it_promises(count: int, resolution: int) -> None:
    design = plan_design(factors(count), resolution=resolution)
    smallest = min([runs for (k, runs), r in PUBLISHED.items() if k == count and r >= resolution], default=2**count)
    assert len(design.arms) == smallest
    rows = signs(design)
    longest = (design.resolution or count + 1) - 1
    for order in range(1, min(longest, 3) + 1):  # a word shorter than the resolution would make a column constant
        for columns in itertools.combinations(range(count), order):
            assert sum(math.prod(row[c] for c in columns) for row in rows) == 0


def test_aliases_are_said_in_words() -> None:
    names = ["activation", "initialization", "regularization", "gradient"]
    design = plan_design({f"techniques.{name}": ["old", "new"] for name in names}, resolution=4)
    assert design.resolution == 4
    assert design.notes == ["8 of 16 combinations"]
    assert design.generators == [
        "techniques.gradient = techniques.activation × techniques.initialization × techniques.regularization"
    ]
    assert design.aliases == [
        "techniques.activation × techniques.initialization is aliased with "
        "techniques.regularization × techniques.gradient",
        "techniques.activation × techniques.regularization is aliased with "
        "techniques.initialization × techniques.gradient",
        "techniques.activation × techniques.gradient is aliased with "
        "techniques.initialization × techniques.regularization",
    ]


def test_aliases_of_resolution_three_name_main_effects_and_are_true_of_the_arms() -> None:
    design = plan_design(factors(5), resolution=3)
    assert "f0 is aliased with f1 × f3 and f2 × f4" in design.aliases
    for a0, a1, a2, a3, a4 in signs(design):
        assert a0 == a1 * a3 == a2 * a4


def test_resolution_five_has_no_aliases_among_two_factor_interactions() -> None:
    design = plan_design(factors(5), resolution=5)
    assert (len(design.arms), design.resolution, design.aliases) == (16, 5, [])


def test_where_no_fraction_is_good_enough_all_combinations_are_run() -> None:
    design = plan_design(factors(3), resolution=4)
    assert (len(design.arms), design.resolution) == (8, None)
    assert design.notes == ["these factors have no fraction of resolution 4: all 8 combinations are run"]


def test_a_factor_with_one_level_is_kept_and_does_not_count() -> None:
    design = plan_design({"fixed": ["only"], **factors(3)}, resolution=3)
    assert len(design.arms) == 4
    assert all(arm.settings["fixed"] == "only" for arm in design.arms)


@pytest.mark.parametrize(
    ("vary", "resolution", "message"),
    [
        (factors(4), 2, "sweep.resolution must be 3, 4 or 5, got 2. Leave it out"),
        (
            {**factors(3), "model.dropout": [0, 0.1, 0.2]},
            3,
            "must be used with two values per factor, got 3 of sweep.vary.model.dropout. Name two",
        ),
        (factors(11), 3, "sweep.vary must name at most 10 factors for a fraction, got 11"),
    ],
)
def test_an_impossible_fraction_is_refused_with_the_cure(
    vary: dict[str, list[Any]], resolution: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_design(vary, resolution=resolution)


def without_activation_for_fm(settings: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    if settings["model"] != {"type": "fm"}:
        return settings, ()
    return {k: v for k, v in settings.items() if k != "activation"}, ("activation",)


def test_combinations_that_differ_in_what_their_model_lacks_are_one_named_arm() -> None:
    vary: dict[str, list[Any]] = {"model": [{"type": "fm"}, {"type": "mlp"}], "activation": ["tanh", "relu"]}
    design = plan_design(vary, applicable=without_activation_for_fm)
    assert [arm.settings.get("activation") for arm in design.arms] == [None, "tanh", "relu"]
    assert design.arms[0].not_applicable == ("activation",)
    assert design.notes == ["activation does not apply to arm-00: 2 combinations are one arm"]


def test_a_fraction_of_arms_that_lack_a_factor_is_refused() -> None:
    vary: dict[str, list[Any]] = {
        "model": [{"type": "fm"}, {"type": "mlp"}],
        "activation": ["tanh", "relu"],
        "x": [0, 1],
    }
    with pytest.raises(ConfigError, match=r"activation not applicable to model = fm.*one by one"):
        plan_design(vary, resolution=3, applicable=without_activation_for_fm)


def test_a_level_is_named_shortly() -> None:
    assert level_name({"type": "fm"}) == "fm"
    assert level_name({"type": "mlp", "hidden": [8]}) == '{"hidden": [8], "type": "mlp"}'
    assert level_name(0.1) == "0.1"
