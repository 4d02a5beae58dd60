"""The bytes of a text file, a block of whole lines at a time: a large file is never in memory as a whole."""

import io
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from cluster.errors import ConfigError
from orchestrator.data.sources.delimited.encoding import BOM

BLOCK_BYTES = 64 * 2**20


class TextFile(Protocol):
    """A file to read; as text, the place that an error names."""

    def pieces(self, num_bytes: int) -> Iterator[bytes]:
        """Yield the content, so many bytes at a time, but for the last piece."""

    def head(self) -> bytes:
        """Return the beginning of the content."""


class Content:
    """A text file, read as often as it is asked for; one that is a single block is read once.

    Every method that reads raises `ConfigError` if the file is empty, or holds a NUL byte: then it is no text, or in
    UTF-16.
    """

    def __init__(self, file: TextFile) -> None:
        self.file = file
        self._only_block: bytes | None = None

    def __str__(self) -> str:
        return str(self.file)

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes without a byte order mark; each block ends where a line does."""
        if self._only_block is not None:
            yield self._only_block
            return
        found = self._read()
        first = list(islice(found, 2))
        if len(first) < 2:
            self._only_block = first[0] if first else b""
            refuse_empty(self._only_block, self)
        yield from first
        yield from found

    def lines(self, encoding: str) -> Iterator[str]:
        """Yield the lines, with their ends."""
        for block in self.blocks():
            yield from io.StringIO(block.decode(encoding), newline="")

    def row_at(self, block: int, place: int) -> int:
        """Return the line, counted from 1, in which a byte of a block lies."""
        before = sum(data.count(b"\n") for data in islice(self.blocks(), block))
        return before + next(islice(self.blocks(), block, None)).count(b"\n", 0, place) + 1

    def let_go(self) -> None:
        """Forget what is in memory."""
        self._only_block = None

    def _read(self) -> Iterator[bytes]:
        self._refuse_nul(self.file.head())  # a hole of a terabyte shows in its first bytes
        rest = b""
        for number, piece in enumerate(self.file.pieces(BLOCK_BYTES)):
            self._refuse_nul(piece, number)
            rest = rest + piece if number else piece.removeprefix(BOM)
            end = _end_of_lines(rest) if len(piece) == BLOCK_BYTES else len(rest)
            if len(rest) - end > BLOCK_BYTES:
                raise ConfigError(f"{self} must have rows of at most {BLOCK_BYTES:,} bytes, got a longer one.")
            if end:
                yield rest[:end]
                rest = rest[end:]
        if rest:
            yield rest

    def _refuse_nul(self, piece: bytes, number: int = 0) -> None:
        if b"\0" in piece:
            before = sum(data.count(b"\n") for data in islice(self.file.pieces(BLOCK_BYTES), number))
            refuse_nul(piece, self, rows_before=before)


def refuse_empty(content: bytes, file: object) -> None:
    """Refuse a file with nothing in it."""
    if not content or content.isspace():
        raise ConfigError(f"{file} must hold at least 1 row, got an empty file.")


def _end_of_lines(data: bytes) -> int:
    """Return where the last whole line ends; a carriage return at the very end may be half of a line's end."""
    return data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, len(data) - 1) + 1


def whole(file: TextFile) -> bytes:
    """Return the bytes of a small file without a byte order mark; it may be empty, but must be text."""
    content = b"".join(file.pieces(BLOCK_BYTES)).removeprefix(BOM)
    refuse_nul(content, file)
    return content


def refuse_nul(content: bytes, place: object, *, rows_before: int = 0) -> None:
    """Refuse what is no text, or in UTF-16."""
    found = content.find(b"\0")
    if found >= 0:
        row = rows_before + content.count(b"\n", 0, found) + 1
        raise ConfigError(f"{place} must be a text file in UTF-8, got a NUL byte in row {row}. Convert it.")
