"""Files that cannot be read, or parts of them: all of them are named at once, or left out where the person says so."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from cluster.errors import ConfigError
from orchestrator.data.manifest import Change
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Piece

MOST_SKIPPED = 10_000  # names in a manifest; where more are damaged, it is not the files that are at fault
_MOST_NAMED = 10  # in a message
LOOKED_BYTES = 2**30  # of other pieces that are read to name all that is damaged at once

T = TypeVar("T")


class DamagedFilesError(ConfigError):
    """Some files cannot be read; ``errors`` has one for each that is known."""

    errors: tuple[ConfigError, ...] = ()
    can_skip: bool = True


class DamagedFileError(ConfigError):
    """One file, or a part of it that can be left out alone, cannot be read."""


@dataclass(frozen=True)
class Damage:
    """What is found where a file cannot be read."""

    error: ConfigError


@dataclass(frozen=True)
class Examined:
    """What is damaged among all things of one kind."""

    what: str
    """What they are: files, pictures."""
    total: int
    errors: Mapping[str, ConfigError]
    """By the name of what is damaged."""
    parts: int | None = None
    """How many are damaged, where a name stands for several."""

    @property
    def count(self) -> int:
        """How many are damaged."""
        return len(self.errors) if self.parts is None else self.parts


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
    changes = refuse_or_record([Examined(what, len(names), damaged)], options, place=place)
    return [name for name, _ in fine], [one for _, one in fine], changes


def refuse_or_record(looks: Sequence[Examined], options: SourceOptions, *, place: str) -> list[Change]:
    """Return a record of what is damaged and left out.

    Args:
        looks: at everything that can be damaged.
        options: whether that is left out.
        place: the source, for messages.

    Raises:
        ConfigError: naming all that is damaged, if it is not to be left out, or if nothing else is there, or too much.
    """
    errors = [error for look in looks for error in look.errors.values()]
    if errors and options.damaged != "skip":
        raise damaged_error(errors)
    for look in looks:
        if look.errors and (look.count == look.total or len(look.errors) > MOST_SKIPPED):
            raise ConfigError(
                f"{place} must hold {look.what} that can be read, and at most {MOST_SKIPPED:,} damaged ones, got "
                f"{look.count:,} damaged of {look.total:,}. The first: {next(iter(look.errors.values()))}"
            )
    return [_change(look) for look in looks] if options.damaged == "skip" else []


def damaged_error(errors: Sequence[ConfigError], *, can_skip: bool = True) -> DamagedFilesError:
    """Return one error for all of them; each begins with the place of its file.

    Args:
        errors: one for each file.
        can_skip: whether the format has the option to leave them out.
    """
    error = DamagedFilesError(_message(errors, can_skip=can_skip))
    error.errors, error.can_skip = tuple(errors), can_skip
    return error


@contextmanager
def naming_all_damaged(pieces: Iterable[Piece]) -> Iterator[None]:
    """Let an error about damaged files of one piece name those of the others too."""
    try:
        yield
    except DamagedFilesError as error:
        raise _damaged_in(pieces, error) from None


def _damaged_in(pieces: Iterable[Piece], first: DamagedFilesError) -> DamagedFilesError:
    """Return one error for all files that the pieces cannot read, of a gigabyte at least."""
    found: list[ConfigError] = []
    looked = 0
    for piece in pieces:
        if looked > LOOKED_BYTES or len(found) > _MOST_NAMED:
            break
        looked += piece.source_bytes
        try:
            piece.read()
        except DamagedFilesError as error:
            found += error.errors
        except ConfigError:  # another fault, which is told once this one is mended
            continue
    return damaged_error(found, can_skip=first.can_skip) if len(found) > len(first.errors) else first


def _message(errors: Sequence[ConfigError], *, can_skip: bool) -> str:
    if len(errors) == 1:
        return f"{errors[0]}" + (" Or leave it out with --option damaged=skip." if can_skip else "")
    shown = "".join(f"\n  {error}" for error in errors[:_MOST_NAMED])
    more = f"\n  and {len(errors) - _MOST_NAMED:,} more" if len(errors) > _MOST_NAMED else ""
    cure = "Leave them out with --option damaged=skip, or mend them" if can_skip else "Mend them"
    return f"{len(errors):,} files must be readable, got damaged ones. {cure}:{shown}{more}"


def _change(look: Examined) -> Change:
    text = f"{look.count:,} of {look.total:,} {look.what} could not be read and were left out."
    return Change(option="damaged=skip", text=text, numbers={"skipped": float(look.count)}, names=tuple(look.errors))
