"""Which arms a sweep trains: every combination of its factors, or a fraction of them whose aliases are known."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import xor
from typing import Any

from cluster.errors import ConfigError
from models.records import Frozen

Settings = dict[str, Any]
Applicable = Callable[[Settings], tuple[Settings, tuple[str, ...]]]
"""Splits a combination into the settings that its model has and the names of those that it lacks."""

# Regular fractions (Box, Hunter and Hunter 1978, table 12.15; NIST handbook 5.3.3.4.7): for a number of two-level
# factors, the generators of each number of basic factors. The first factor is A, the second B, ...; a generator is the
# product of basic factors that a further factor equals.
GENERATORS: Mapping[int, Mapping[int, tuple[str, ...]]] = {
    3: {2: ("AB",)},
    4: {3: ("ABC",)},
    5: {3: ("AB", "AC"), 4: ("ABCD",)},
    6: {3: ("AB", "AC", "BC"), 4: ("ABC", "BCD"), 5: ("ABCDE",)},
    7: {3: ("AB", "AC", "BC", "ABC"), 4: ("ABC", "BCD", "ACD"), 5: ("ABCD", "ABDE"), 6: ("ABCDEF",)},
    8: {4: ("BCD", "ACD", "ABC", "ABD"), 5: ("ABC", "ABD", "BCDE"), 6: ("ABCD", "ABEF"), 7: ("ABCDEFG",)},
    9: {
        4: ("ABC", "BCD", "ACD", "ABD", "ABCD"),
        5: ("BCDE", "ACDE", "ABDE", "ABCE"),
        6: ("ABCD", "ACEF", "CDEF"),
        7: ("ACDFG", "BCEFG"),
    },
    10: {
        4: ("ABC", "BCD", "ACD", "ABD", "ABCD", "AB"),
        5: ("ABCD", "ABCE", "ABDE", "ACDE", "BCDE"),
        6: ("BCDF", "ACDF", "ABDE", "ABCE"),
        7: ("ABCG", "BCDE", "ACDF"),
    },
}


class DesignArm(Frozen):
    """One combination of choices."""

    name: str
    settings: Settings
    """Factor -> level, of the factors that apply."""
    not_applicable: tuple[str, ...] = ()
    """Factors that this arm's model does not have."""


class Design(Frozen):
    """The arms of a sweep, and what cannot be told apart with them."""

    arms: list[DesignArm]
    factors: dict[str, list[Any]]
    resolution: int | None
    """The fraction's resolution; ``None`` for all combinations. 3: main effects are free of each other; 4: also of
    two-factor interactions; 5 or more: two-factor interactions are free of each other, too."""
    generators: list[str]
    """What each further factor of a fraction equals, in words."""
    aliases: list[str]
    """Main effects and two-factor interactions that cannot be told apart, in words; those of three factors or more
    are left out."""
    notes: list[str]
    """What else the reader of the plan should know."""

    def cells(self, seeds: Sequence[int]) -> list[tuple[DesignArm, int]]:
        """Every training, block by block: all arms with one seed, then with the next, so that arms can be paired."""
        return [(arm, seed) for seed in seeds for arm in self.arms]


def plan_design(
    factors: Mapping[str, Sequence[Any]],
    *,
    resolution: int | None = None,
    applicable: Applicable = lambda settings: (settings, ()),
) -> Design:
    """Plan the arms.

    Args:
        factors: name -> levels; a level that is named twice counts once.
        resolution: least resolution of a fraction of the combinations, 3 to 5; ``None`` for all of them.
        applicable: see `Applicable`; combinations that differ only in what their model lacks are one arm.

    Raises:
        ConfigError: if a fraction is asked for that these factors do not have.
    """
    levels = {name: list({repr(v): v for v in values}.values()) for name, values in factors.items()}
    generators = () if resolution is None else _generators(levels, resolution)
    arms = _arms(levels, generators, applicable)
    if generators and any(arm.not_applicable for arm in arms):
        lacking = next(arm for arm in arms if arm.not_applicable)
        raise ConfigError(
            f"sweep.resolution must be left out where a factor does not apply to every arm, got {resolution} with "
            f"{', '.join(lacking.not_applicable)} not applicable to {_described(lacking.settings)}. Sweep these models "
            f"one by one, or run all combinations."
        )
    names = [name for name, values in levels.items() if len(values) == 2]
    words = _words(generators, len(names))
    return Design(
        arms=arms,
        factors=levels,
        resolution=resolution_of(words) if words else None,
        generators=[f"{names[-len(generators) + i]} = {_product(word, names)}" for i, word in enumerate(generators)],
        aliases=list(_aliases(words, names)),
        notes=list(_notes(arms, levels, resolution, fraction=bool(generators))),
    )


def level_name(value: Any) -> str:
    """How a level is written in tables: a group such as ``{"type": "fm"}`` by its type, if that is all it says."""
    if isinstance(value, dict):
        return str(value["type"]) if set(value) == {"type"} else json.dumps(value, sort_keys=True)
    return str(value)


def resolution_of(words: Sequence[int]) -> int:
    """Length of the shortest product of ``words`` (bit masks of factors) in the defining relation."""
    return min(word.bit_count() for word in _group(words)[1:])


def _generators(levels: Mapping[str, Sequence[Any]], resolution: int) -> tuple[str, ...]:
    """Those of the smallest fraction of at least ``resolution``; none where only all combinations reach it."""
    if resolution not in (3, 4, 5):
        raise ConfigError(
            f"sweep.resolution must be 3, 4 or 5, got {resolution}. Leave it out to run all combinations."
        )
    many = [name for name, values in levels.items() if len(values) > 2]
    if many:
        raise ConfigError(
            f"sweep.resolution must be used with two values per factor, got {len(levels[many[0]])} of "
            f"sweep.vary.{many[0]}. Name two of them, or leave sweep.resolution out to run all combinations."
        )
    num_factors = sum(len(values) == 2 for values in levels.values())
    if num_factors > max(GENERATORS):
        raise ConfigError(
            f"sweep.vary must name at most {max(GENERATORS)} factors for a fraction, got {num_factors}. "
            f"Leave out those that matter least."
        )
    known = GENERATORS.get(num_factors, {})
    enough = (known[basic] for basic in sorted(known) if resolution_of(_words(known[basic], num_factors)) >= resolution)
    return next(enough, ())


def _arms(levels: Mapping[str, Sequence[Any]], generators: Sequence[str], applicable: Applicable) -> list[DesignArm]:
    arms: dict[str, DesignArm] = {}
    for combination in _combinations(levels, generators):
        settings, missing = applicable(combination)
        key = repr(sorted(settings.items()))
        if key not in arms:
            arms[key] = DesignArm(name=f"arm-{len(arms):02d}", settings=settings, not_applicable=missing)
    return list(arms.values())


def _combinations(levels: Mapping[str, Sequence[Any]], generators: Sequence[str]) -> Iterator[Settings]:
    """The product of the basic factors, in their order, with the further factors that follow from them."""
    varied = [name for name, values in levels.items() if len(values) == 2]
    further = varied[len(varied) - len(generators) :] if generators else []
    for values in itertools.product(*(levels[name] for name in levels if name not in further)):
        chosen = dict(zip((name for name in levels if name not in further), values, strict=True))
        signs = [2 * levels[name].index(chosen[name]) - 1 for name in varied if name in chosen]
        for name, word in zip(further, generators, strict=True):
            chosen[name] = levels[name][math.prod(signs[ord(letter) - ord("A")] for letter in word) > 0]
        yield {name: chosen[name] for name in levels}


def _words(generators: Sequence[str], num_factors: int) -> list[int]:
    """A generator with the factor that it generates, as a bit mask of factors."""
    basic = num_factors - len(generators)
    return [_mask(word) | 1 << (basic + i) for i, word in enumerate(generators)]


def _mask(word: str) -> int:
    return sum(1 << (ord(letter) - ord("A")) for letter in word)


def _group(words: Sequence[int]) -> list[int]:
    """All products of ``words``, the empty one first: the defining relation."""
    subsets = (c for size in range(len(words) + 1) for c in itertools.combinations(words, size))
    return [reduce(xor, subset, 0) for subset in subsets]


def _aliases(words: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    """One sentence for each set of main effects and two-factor interactions that share an estimate."""
    group = _group(words)
    sets: dict[int, list[str]] = {}
    for size in (1, 2):
        for factors in itertools.combinations(range(len(names)), size):
            mask = sum(1 << factor for factor in factors)
            sets.setdefault(min(mask ^ word for word in group), []).append(" × ".join(names[f] for f in factors))
    for first, *others in sets.values():
        if others:
            yield f"{first} is aliased with {' and '.join(others)}"


def _product(word: str, names: Sequence[str]) -> str:
    return " × ".join(names[ord(letter) - ord("A")] for letter in word)


def _notes(
    arms: Sequence[DesignArm], levels: Mapping[str, Sequence[Any]], resolution: int | None, *, fraction: bool
) -> Iterator[str]:
    total = math.prod(len(values) for values in levels.values())
    if fraction:
        yield f"{len(arms)} of {total} combinations"
    elif resolution is not None:
        yield f"these factors have no fraction of resolution {resolution}: all {total} combinations are run"
    for missing in sorted({arm.not_applicable for arm in arms} - {()}):
        named = ", ".join(arm.name for arm in arms if arm.not_applicable == missing)
        lost = math.prod(len(levels[name]) for name in missing)
        yield f"{', '.join(missing)} does not apply to {named}: {lost} combinations are one arm"


def _described(settings: Settings) -> str:
    return ", ".join(f"{name} = {level_name(value)}" for name, value in settings.items())
