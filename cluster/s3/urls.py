"""Addresses as people may see them: without the passwords and signatures that a URL may hold."""

import re
import ssl
from collections.abc import Iterator

_HOST = re.compile(r"([\w.-]*|\[[\w.:%]*\])(:\d*)?")  # and a port
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SIGNED_QUERY = re.compile(r"\?[^\s'\"<>]*(?:sig|signature|token|credential|key|secret)=[^\s'\"<>]*", re.IGNORECASE)


def shown_url(url: str) -> str:
    """Return a URL, or HOST:PORT, without user, password, query and fragment; ``?…`` stands for a query.

    It takes what is no URL too, and never fails: it is for messages about URLs that are wrong.
    """
    place, _, query = url.partition("#")[0].partition("?")
    scheme, separator, rest = place.partition("://") if "://" in place else ("", "", place)
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if not _HOST.fullmatch(host):  # a password with a '/' or a '?' in it, cut in two
        host, path = "…", path.rpartition("@")[2]
    return f"{scheme}{separator}{host}{slash}{path}" + ("?…" if query else "")


def masked(text: str) -> str:
    """Return a text, such as a traceback, with every URL in it as `shown_url` shows it."""
    return _SIGNED_QUERY.sub("?…", _URL.sub(_masked_url, text))


def _masked_url(found: re.Match[str]) -> str:
    return shown_url(found[0]) if re.search("[@?#]", found[0]) else found[0]


def shown_reason(error: BaseException) -> str:
    """Return in a few words why a request failed. The exceptions of HTTP clients have the whole URL in their text."""
    for inner in _beneath(error):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner.verify_message
        if isinstance(inner, ssl.SSLError) and inner.reason:
            return inner.reason.replace("_", " ").lower()
        if isinstance(inner, OSError) and inner.strerror:
            return masked(inner.strerror)
    return type(error).__name__


def _beneath(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and all that it wraps, each once."""
    found, seen = [error], set[int]()
    while found:
        current = found.pop(0)
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
            found += [one for one in inner if isinstance(one, BaseException)]
