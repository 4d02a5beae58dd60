"""Files that cannot be read: all of them are named at once, or left out where the person says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster.errors import ConfigError
from orchestrator.data.manifest import Change
from orchestrator.data.sources.options import SourceOptions

MOST_SKIPPED = 10_000  # names in a manifest; where more are damaged, it is not the files that are at fault
_MOST_NAMED = 10  # in a message

T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """What is found where a file cannot be read."""

    error: ConfigError


def refuse_or_skip(
    names: Sequence[str], found: Sequence[T | Damage], options: SourceOptions, *, place: str, what: str
) -> tuple[list[str], list[T], list[Change]]:
    """Return the names of the files that can be read, what was found in them, and a record of those left out.

    Args:
        names: of all files.
        found: in each.
        options: whether damaged ones are left out.
        place: the source, for messages.
        what: the files are.

    Raises:
        ConfigError: naming the damaged ones, if they are not to be left out, or are too many.
    """
    pairs = list(zip(names, found, strict=True))
    damaged = {name: one.error for name, one in pairs if isinstance(one, Damage)}
    fine = [(name, one) for name, one in pairs if not isinstance(one, Damage)]
    if damaged and options.damaged != "skip":
        raise damaged_error(list(damaged.values()))
    if damaged and (not fine or len(damaged) > MOST_SKIPPED):
        raise ConfigError(
            f"{place} must hold {what} that can be read, and at most {MOST_SKIPPED:,} damaged ones, got "
            f"{len(damaged):,} damaged of {len(names):,}. The first: {next(iter(damaged.values()))}"
        )
    return [name for name, _ in fine], [one for _, one in fine], _record(list(damaged), len(names), what, options)


def damaged_error(errors: Sequence[ConfigError]) -> ConfigError:
    """Return one error for all of them; each begins with the place of its file."""
    if len(errors) == 1:
        return ConfigError(f"{errors[0]} Leave it out with --option damaged=skip.")
    shown = "".join(f"\n  {error}" for error in errors[:_MOST_NAMED])
    more = f"\n  and {len(errors) - _MOST_NAMED:,} more" if len(errors) > _MOST_NAMED else ""
    return ConfigError(
        f"{len(errors):,} files must be readable, got damaged ones. Leave them out with --option damaged=skip:"
        f"{shown}{more}"
    )


def _record(names: Sequence[str], count: int, what: str, options: SourceOptions) -> list[Change]:
    if options.damaged != "skip":
        return []
    text = f"{len(names):,} of {count:,} {what} could not be read and were left out."
    return [Change(option="damaged=skip", text=text, numbers={"skipped": float(len(names))}, names=tuple(names))]
