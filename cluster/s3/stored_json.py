"""JSON that somebody else may have written: parsed within limits of size, depth and count, or refused in one line.

Whoever can write into a bucket can write any bytes there. A parser that meets 50,000 open brackets or 60 MB of small
lists fails with a traceback or with all of the memory. So the size of an object is known before its bytes are
fetched, and its depth and its number of values are counted, without parsing, before anything is parsed.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from cluster.errors import IntegrityError, NotFoundError

MOST_BYTES = 32 * 2**20  # a vocabulary of a million words of 20 letters; the manifest of 24,000 row groups has a tenth
MOST_DEPTH = 32  # what this program writes has 10 levels at most
MOST_BRANCHES = 125_000  # lists, objects, and keys of objects: each takes up to two kilobytes to parse and to refuse
MANY_BRANCHES = 1_000_000  # where nothing but JSON is parsed, or a record has a long history of anything
MOST_KEYS = 10_000  # of one object
MOST_VALUES = 250_000  # elements of lists: each that is refused takes nearly a kilobyte
MANY_VALUES = 2_000_000  # for records whose long lists are refused at their first wrong element: vocabularies
SHOWN = 160  # characters of a reason: a message is a line

M = TypeVar("M", bound=BaseModel)
S = TypeVar("S")
T = TypeVar("T")

_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{},:'))
_PART_BYTES = 2**18  # each may become a piece of 40 bytes


class Listing(NamedTuple, Generic[T]):
    """What a folder of the store holds."""

    found: list[T]
    damaged: list[str]
    """A line for each object that could not be read: which one, and why."""


def listing(items: Iterable[S], read: Callable[[S], T]) -> Listing[T]:
    """Read each of the items; one that is damaged hides no other, and one that is gone is left out."""
    found, damaged = [], []
    for item in items:
        try:
            found.append(read(item))
        except IntegrityError as error:
            damaged.append(str(error))
        except NotFoundError:
            continue
    return Listing(found, damaged)


def parse_model(
    kind: type[M],
    body: bytes,
    *,
    where: str,
    what: str,
    cure: str = "",
    most_values: int = MOST_VALUES,
    most_branches: int = MOST_BRANCHES,
) -> M:
    """Return bytes as a record; ``where`` names them in the message.

    Raises:
        IntegrityError: They are too many, no JSON, or another record.
    """
    try:
        require_bounded(body, most_values=most_values, most_branches=most_branches)
        return kind.model_validate_json(body)
    except ValueError as error:  # a ValidationError is one too
        raise _damaged(where, what, error, cure) from None


def parse_json(body: bytes, *, where: str) -> Any:
    """Return bytes parsed as JSON; ``where`` names them in the message.

    Raises:
        IntegrityError: They are too many, nested too deep, or no JSON in UTF-8.
    """
    try:
        require_bounded(body)
        return json.loads(body.decode("utf-8"))  # the parser would guess at UTF-16, which was not counted
    except ValueError as error:
        raise _damaged(where, "JSON", error, "") from None


def require_bounded(body: bytes, *, most_values: int = MANY_VALUES, most_branches: int = MANY_BRANCHES) -> None:
    """Look at the size, the depth and the counts of a JSON text, without parsing it.

    Raises:
        ValueError: One of them exceeds its limit; the message names it.
    """
    if len(body) > MOST_BYTES:
        raise ValueError(f"{len(body):,} bytes, more than {MOST_BYTES:,}")
    branches = values = 0
    keys: list[int] = []  # of each list or object that is open
    for part in _structure(body):
        branches += part.count(b"[") + part.count(b"{") + part.count(b":")
        if branches > most_branches:
            raise ValueError(f"more than {most_branches:,} lists, objects and keys")
        values += part.count(b",")
        if values > most_values:
            raise ValueError(f"more than {most_values:,} values")
        for sign in part.translate(None, b","):
            _follow(sign, keys)


def _follow(sign: int, keys: list[int]) -> None:
    if sign in b"[{":
        keys.append(0)
        if len(keys) > MOST_DEPTH:
            raise ValueError(f"lists and objects nested more than {MOST_DEPTH} deep")
    elif keys and sign == ord(":"):
        keys[-1] += 1
        if keys[-1] > MOST_KEYS:
            raise ValueError(f"an object of more than {MOST_KEYS:,} keys")
    elif keys:
        keys.pop()


def first_fault(error: ValueError) -> str:
    """Return what is wrong with a text or a record, in one line of bounded length."""
    if isinstance(error, ValidationError):
        # as text, of which the first is parsed: as objects, a hundred thousand errors take twice the memory
        text = error.json(include_url=False, include_input=False, include_context=False)
        first, _ = json.JSONDecoder().raw_decode(text, 1)
        where = ".".join(map(str, first["loc"]))[:SHOWN]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        return f"{f'an error at {where}: ' if where else ''}{' '.join(first['msg'].split())[:SHOWN]}{more}"
    return " ".join(str(error).split())[:SHOWN]


def _structure(body: bytes) -> Iterator[bytes]:
    """Yield the brackets, braces, colons and commas outside of texts, some at a time, at the speed of C.

    Two quotes beside each other may go wherever they are: what lies inside of a text and what outside stays the same.
    """
    if b"\\" in body:
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    kept = body.translate(None, _ALL_BUT_STRUCTURE).replace(b'""', b"")
    is_text = 0
    for start in range(0, len(kept), _PART_BYTES):
        pieces = kept[start : start + _PART_BYTES].split(b'"')
        yield b"".join(pieces[is_text::2])
        is_text ^= (len(pieces) - 1) % 2


def _damaged(where: str, what: str, error: ValueError, cure: str) -> IntegrityError:
    return IntegrityError(f"{where} must be {what}, got {first_fault(error)}.{f' {cure}' if cure else ''}")
