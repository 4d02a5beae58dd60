"""How far two rows of a series are apart, in words too. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from models.records import Frozen

_UNITS = ((86_400 * 10**6, "day"), (3600 * 10**6, "hour"), (60 * 10**6, "minute"), (10**6, "second"))


class TimeStep(Frozen):
    """How far two rows of a series are apart."""

    size: int = Field(gt=0)
    """In microseconds, in months, or of a column that counts."""
    unit: Literal["microseconds", "months", "counts"] = "microseconds"

    def __str__(self) -> str:
        return described(self.size, self.unit)


def described(size: int, unit: str) -> str:
    """Return a distance in words: 15 minutes, 1 year, 5 counts."""
    if unit == "counts":
        return f"{size:,} count{'s' * (size > 1)}"
    if unit == "months":
        count, word = (size // 12, "year") if size % 12 == 0 else (size, "month")
        return f"{count} {word}{'s' * (count > 1)}"
    parts, rest = [], size
    for length, word in _UNITS:
        count, rest = divmod(rest, length)
        parts += [f"{count} {word}{'s' * (count > 1)}"] if count else []
    return " ".join(parts[:2]) if parts else f"{size / 10**6:.4g} seconds"
