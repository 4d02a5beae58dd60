"""In which encoding the text files of a source are: one for all of them, and none of them binary."""

import re
from collections.abc import Mapping
from typing import TypeVar

from cluster.errors import ConfigError

K = TypeVar("K")

BOM = b"\xef\xbb\xbf"

_WINDOWS_BYTES = re.compile(rb"[\x80-\x9f]")  # letters of Windows, control characters of Latin-1


def refuse_nul(content: bytes, place: object) -> None:
    """Refuse what is no text, or in UTF-16."""
    found = content.find(b"\0")
    if found >= 0:
        row = content.count(b"\n", 0, found) + 1
        raise ConfigError(f"{place} must be a text file in UTF-8, got a NUL byte in row {row}. Convert it.")


def decoded(contents: Mapping[K, bytes], places: Mapping[K, object]) -> tuple[dict[K, bytes], str]:
    """Return the contents in UTF-8, and the encoding that they were in, which is that of all of them.

    Files that are not UTF-8 are Latin-1, or Windows' extension of it, unless one is UTF-8 beyond ASCII, or mostly is.

    Raises:
        ConfigError: if they are a mixture, or damaged.
    """
    faults = {name: fault for name, content in contents.items() if (fault := _utf8_fault(content))}
    if not faults:
        return dict(contents), "utf-8"
    if any(map(_is_mostly_utf8, contents.values())):
        name, error = next(iter(faults.items()))
        row = contents[name].count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{places[name]} must be a text file in UTF-8, got {error.reason} in row {row}, beside others in "
            "UTF-8. Convert it."
        ) from error
    encoding = "cp1252" if any(_WINDOWS_BYTES.search(content) for content in contents.values()) else "latin-1"
    found = {}
    for name, content in contents.items():
        try:
            found[name] = content.decode(encoding).encode()
        except UnicodeDecodeError as error:
            row = content.count(b"\n", 0, error.start) + 1
            raise ConfigError(
                f"{places[name]} must be a text file in UTF-8 or Latin-1, got byte {content[error.start]:#x} in row "
                f"{row}. Convert it."
            ) from error
    return found, encoding


def in_encoding(format: str, encoding: str) -> str:
    """Return the name of a format, with the encoding of its files if it is not UTF-8."""
    return format if encoding == "utf-8" else f"{format} ({encoding})"


def _is_mostly_utf8(content: bytes) -> bool:
    """Whether a content has characters beyond ASCII in UTF-8, and as many as it has bytes that are not UTF-8.

    Two letters of Latin-1 may look like one in UTF-8 by chance, such as those at the end of »Spaß«.
    """
    text = content.decode(errors="ignore")
    beyond = len(text) - len(text.encode("ascii", errors="ignore"))
    return 0 < beyond >= len(content) - len(text.encode())


def _utf8_fault(content: bytes) -> UnicodeDecodeError | None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error
    return None
