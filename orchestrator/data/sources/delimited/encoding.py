"""In which encoding text files are: UTF-8, or else Latin-1 or Windows' extension of it, all of them in one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import ConfigError
from orchestrator.data.sources.delimited.blocks import Content

_WINDOWS_BYTES = re.compile(rb"[\x80-\x9f]")  # letters of Windows, control characters of Latin-1
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # nothing in Windows' extension


@dataclass
class Letters:
    """What is seen of a file's characters, block after block."""

    blocks: int = 0
    fault: tuple[int, int, str] | None = None
    """Block, place in it and reason of the first byte that is no UTF-8."""
    undefined: tuple[int, int, int] | None = None
    """Block, place in it and value of the first byte that Windows' extension does not have."""
    has_quotes: bool = False
    is_utf8: bool = False
    """Whether there are characters beyond ASCII in UTF-8."""
    is_windows: bool = False
    """Whether there are bytes that are letters in Windows' extension only."""

    def look_at(self, block: bytes) -> None:
        """See the next block."""
        if not block.isascii():
            self._see(block)
        self.has_quotes = self.has_quotes or b'"' in block
        self.blocks += 1

    def _see(self, block: bytes) -> None:
        try:
            block.decode()
            self.is_utf8 = True
        except UnicodeDecodeError as error:
            self.fault = self.fault or (self.blocks, error.start, error.reason)
            self.is_utf8 = self.is_utf8 or not block.decode(errors="ignore").isascii()
        self.is_windows = self.is_windows or _WINDOWS_BYTES.search(block) is not None
        found = None if self.undefined else _UNDEFINED.search(block)
        if found:
            self.undefined = (self.blocks, found.start(), block[found.start()])


def encoding_of(letters: Mapping[str, Letters], contents: Mapping[str, Content]) -> str:
    """Return the encoding that all files are in.

    Files that are not UTF-8 are Latin-1, or Windows' extension of it, unless one has characters beyond ASCII in UTF-8.

    Raises:
        ConfigError: if they are a mixture, or damaged.
    """
    faults = {split: seen.fault for split, seen in letters.items() if seen.fault}
    if not faults:
        return "utf-8"
    if any(seen.is_utf8 for seen in letters.values()):
        split, (block, place, reason) = next(iter(faults.items()))
        raise ConfigError(
            f"{contents[split]} must be a text file in UTF-8, got {reason} in row "
            f"{contents[split].row_at(block, place)}, beside others in UTF-8. Convert it."
        )
    if not any(seen.is_windows for seen in letters.values()):
        return "latin-1"
    for split, seen in letters.items():
        if seen.undefined:
            block, place, value = seen.undefined
            raise ConfigError(
                f"{contents[split]} must be a text file in UTF-8 or Latin-1, got byte {value:#x} in row "
                f"{contents[split].row_at(block, place)}. Convert it."
            )
    return "cp1252"


def in_encoding(format: str, encoding: str) -> str:
    """Return the name of a format, with the encoding of its files if it is not UTF-8."""
    return format if encoding == "utf-8" else f"{format} ({encoding})"
