"""Reads pickles that hold nothing but dicts, lists, numbers, texts and arrays of bytes, and runs nothing of them.

A pickle is a program that may import and call anything. This reader lets through only the instructions that such data
need, hands out four stand-ins of its own for the names that an array of bytes is made of, and refuses every other name
before anything of it is imported.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from orchestrator.data.columns import Array
from orchestrator.data.sources.damaged import DamagedFileError


def read_plain_pickle(data: bytes, place: str) -> dict[str, Any]:
    """Return the dict that a pickle of Python 2 or 3 holds; texts that are not keys may be bytes.

    Raises:
        DamagedFileError: if it is no pickle, or an array of it has not as many bytes as its shape says.
        ConfigError: if it holds something else, or names anything that could be called.
    """
    try:
        _check_instructions(data)
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _RefusedError as error:
        raise ConfigError(
            f"{place} must be a pickle of numbers, texts and arrays of bytes, got one with {error}, which could do "
            "anything. Do not open it; take the binary version."
        ) from None
    except Exception as error:  # an unpickler raises whatever damaged data lead it to
        raise DamagedFileError(
            f"{place} must be a whole pickle, got a damaged one ({type(error).__name__}: {error}). Download it again."
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{place} must be a pickled dict, got {type(found).__name__}. Download it again.")
    values = {_text(key): value for key, value in found.items()}
    return {key: value.array(place) if isinstance(value, _Array) else value for key, value in values.items()}


class _RefusedError(Exception):
    """A pickle does more; the message says what."""


def _check_instructions(data: bytes) -> None:
    """Refuse instructions that plain data do not need, and those that would take memory without end."""
    for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if count > _MOST_INSTRUCTIONS:
            raise _RefusedError(f"more than {_MOST_INSTRUCTIONS:,} instructions")
        if instruction.name not in _INSTRUCTIONS:
            raise _RefusedError(f"the instruction {instruction.name}")
        if instruction.name.endswith("PUT") and int(argument or 0) > count:  # numbered from 0, a table of so many
            raise _RefusedError(f"place {argument} of a table, of which {count} places are in use at most")


class _Type:
    """In place of `numpy.dtype`: only its name counts."""

    def __init__(self, name: object) -> None:
        self.name = _text(name)

    def __setstate__(self, state: object) -> None:
        """Leave out the byte order and what records need; bytes have neither."""


class _Array:
    """In place of `numpy.ndarray`: what is needed to make one, to be checked first."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self, place: str) -> Array:
        """Return the array.

        Raises:
            DamagedFileError: if it is not of bytes, or has not as many as its shape says.
        """
        match self.state:
            case (int(), tuple(shape), _Type(name="u1"), bool(is_fortran), bytes(content)):
                if all(isinstance(n, int) and n >= 0 for n in shape) and np.prod(shape, dtype=object) == len(content):
                    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")
        raise DamagedFileError(f"{place} must hold arrays of bytes, with as many as their shape says, got another.")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _STAND_INS:
            raise _RefusedError(f"the name {module}.{name}")

        def stand_in(*arguments: object) -> object:  # a new one each time: a pickle may change what it is given
            return _STAND_INS[module, name](*arguments)

        return stand_in


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


_MOST_INSTRUCTIONS = 1_000_000  # a batch of CIFAR has 10,000 labels and as many names, of two or three each
_INSTRUCTIONS = frozenset(
    """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES
    LIST EMPTY_LIST APPEND APPENDS DICT EMPTY_DICT SETITEM SETITEMS TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()  # noqa: SIM905
)

_STAND_INS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): lambda name, *_: _Type(name),
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),  # NumPy 2
}
