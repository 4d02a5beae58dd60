"""In which encoding the text files of a source are: one for all of them."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster.errors import ConfigError

K = TypeVar("K", bound=Hashable)

BOM = b"\xef\xbb\xbf"

_WINDOWS_BYTES = re.compile(rb"[\x80-\x9f]")  # letters of Windows, control characters of Latin-1
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # nothing in Windows' extension


@dataclass
class Letters:
    """What is seen of a file's characters, block after block."""

    blocks: int = 0
    fault: tuple[int, int] | None = None
    """Block and place in it of the first byte that is no UTF-8."""
    reason: str = ""
    """What is wrong there."""
    undefined: tuple[int, int] | None = None
    """Block and place in it of the first byte that Windows' extension does not have."""
    byte: int = 0
    """That byte."""
    has_quotes: bool = False
    beyond_ascii: int = 0
    """Characters in UTF-8."""
    broken: int = 0
    """Bytes that are no UTF-8."""
    is_windows: bool = False
    """Whether there are bytes that are letters in Windows' extension only."""

    def look_at(self, block: bytes) -> None:
        """See the next block, which ends where a line does."""
        if not block.isascii():
            self._see(block)
        self.has_quotes = self.has_quotes or b'"' in block
        self.blocks += 1

    @property
    def is_mostly_utf8(self) -> bool:
        """Whether there are characters beyond ASCII in UTF-8, and as many as there are bytes that are not UTF-8.

        Two letters of Latin-1 may look like one in UTF-8 by chance, such as those at the end of »Spaß«.
        """
        return 0 < self.beyond_ascii >= self.broken

    def _see(self, block: bytes) -> None:
        try:
            text = block.decode()
        except UnicodeDecodeError as error:
            if self.fault is None:
                self.fault, self.reason = (self.blocks, error.start), error.reason
            text = block.decode(errors="ignore")
            self.broken += len(block) - len(text.encode())
        self.beyond_ascii += len(text) - len(text.encode("ascii", errors="ignore"))
        self.is_windows = self.is_windows or _WINDOWS_BYTES.search(block) is not None
        found = None if self.undefined else _UNDEFINED.search(block)
        if found:
            self.undefined, self.byte = (self.blocks, found.start()), block[found.start()]


def encoding_of(
    letters: Mapping[K, Letters], places: Mapping[K, object], row_at: Callable[[K, tuple[int, int]], int]
) -> str:
    """Return the encoding that all files are in.

    Files that are not UTF-8 are Latin-1, or Windows' extension of it, unless one is UTF-8 beyond ASCII, or mostly is.

    Args:
        letters: what was seen of each file.
        places: the files, as messages name them.
        row_at: returns the line in which a byte of a block lies.

    Raises:
        ConfigError: if they are a mixture, or damaged.
    """
    faults = {name: seen.fault for name, seen in letters.items() if seen.fault}
    if not faults:
        return "utf-8"
    if any(seen.is_mostly_utf8 for seen in letters.values()):
        name, fault = next(iter(faults.items()))
        raise ConfigError(
            f"{places[name]} must be a text file in UTF-8, got {letters[name].reason} in row {row_at(name, fault)}, "
            "beside others in UTF-8. Convert it."
        )
    if not any(seen.is_windows for seen in letters.values()):
        return "latin-1"
    for name, seen in letters.items():
        if seen.undefined:
            raise ConfigError(
                f"{places[name]} must be a text file in UTF-8 or Latin-1, got byte {seen.byte:#x} in row "
                f"{row_at(name, seen.undefined)}. Convert it."
            )
    return "cp1252"


def decoded(contents: Sequence[bytes], places: Sequence[object]) -> tuple[list[str], str]:
    """Return the texts of files that are in memory, and the encoding that all are in; see `encoding_of`."""
    letters = [Letters() for _ in contents]
    for seen, content in zip(letters, contents, strict=True):
        seen.look_at(content)

    def row_at(number: int, place: tuple[int, int]) -> int:
        return contents[number].count(b"\n", 0, place[1]) + 1

    encoding = encoding_of(dict(enumerate(letters)), dict(enumerate(places)), row_at)
    return [content.decode(encoding) for content in contents], encoding


def in_encoding(format: str, encoding: str) -> str:
    """Return the name of a format, with the encoding of its files if it is not UTF-8."""
    return format if encoding == "utf-8" else f"{format} ({encoding})"
