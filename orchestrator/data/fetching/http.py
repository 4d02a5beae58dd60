"""Downloads a file over HTTP: goes on where a broken transfer ended, and verifies what came."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from cluster.errors import (
    ConfigError,
    IntegrityError,
    OrchestratorError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from cluster.machine.disk import naming_disk, require_room
from cluster.machine.proxies import spare_loopback
from cluster.s3.connection import is_loopback
from cluster.s3.retries import RetryPolicy
from cluster.s3.urls import shown_reason, shown_url
from orchestrator.data.fetching.disk import alone, file_digest

PATIENCE = RetryPolicy(total_s=60.0, connect_timeout_s=10.0, longest_pause_s=10.0)
"""How long to wait for the next byte; a download that moves may take as long as it takes."""

CHUNK_BYTES = 2**20
_FRUITLESS = 20  # attempts that came no further than one before: the file breaks off there

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]
"""Called with the bytes so far, all bytes if known, and what they belong to."""


# ---- files over HTTP


def fetch(
    urls: str | Sequence[str],
    *,
    to: Path,
    checksum: str | None = None,
    policy: RetryPolicy = PATIENCE,
    progress: Progress | None = None,
) -> Path:
    """Download a file, unless it is there already, and return its path.

    A break is resumed where it happened, also by a later process if a checksum can tell that the halves fit.

    Args:
        urls: the same file at one or several places, tried in this order.
        to: where it is to be.
        checksum: ``sha256:HEX`` or ``md5:HEX``.
        policy: how long to wait for the next byte.
        progress: told about every megabyte.

    Raises:
        OrchestratorError: as `local_copy` does.
    """
    urls = [urls] if isinstance(urls, str) else list(urls)
    for url in urls:
        check_url(url, checksum)
    with alone(to):
        if to.exists() and _is_whole(to, checksum):
            return to
        part = to.with_name(f".{to.name}.part")
        _download(urls, _Transfer(part, checksum, policy, progress or no_progress), policy)
        part.replace(to)
    return to


class _BrokenTransferError(Exception):
    """The server broke off or asks to try again."""


def _download(urls: list[str], transfer: "_Transfer", policy: RetryPolicy) -> None:
    """Try the URLs in turn, round after round, until one gave the whole file or none can."""
    hopeless: dict[str, OrchestratorError] = {}
    attempt = 0
    while True:
        for url in urls:
            if url in hopeless:
                continue
            try:
                transfer.run(url)
                return
            except OrchestratorError as error:
                hopeless[url] = error
            except _BrokenTransferError as error:
                last = (url, error)
        if len(hopeless) == len(urls):
            raise _summary(list(hopeless.values()))
        if transfer.moved():
            attempt = 0
        pause_s = policy.pause_s(attempt, jitter=random.random())
        if transfer.idle_s() + pause_s > policy.total_s or attempt >= _FRUITLESS:
            raise _gave_up(*last, policy)
        if attempt == 0:
            log.warning("%s broke off: %s; trying for another %.0f s", shown_url(last[0]), last[1], policy.total_s)
        time.sleep(pause_s)
        attempt += 1


class _Transfer:
    """One file on its way into `part`, over several attempts."""

    def __init__(self, part: Path, checksum: str | None, policy: RetryPolicy, progress: Progress) -> None:
        self._part = part
        self._checksum = checksum
        self._timeout_s = (policy.connect_timeout_s, policy.read_timeout_s)
        self._progress = progress
        self._validators: dict[str, str] = {}
        self._last_byte_s = time.monotonic()
        self._received = self._furthest = 0

    def run(self, url: str) -> None:
        """Fetch what is missing and verify the whole.

        Raises:
            OrchestratorError: if trying this URL again would not help.
            _BrokenTransferError: if it may.
        """
        start = self._resume_at(url)
        headers = {"Accept-Encoding": "identity"}  # the file's own bytes: ranges and checksums are of those
        if start:
            headers["Range"] = f"bytes={start}-"
        if start and url in self._validators:
            headers["If-Range"] = self._validators[url]
        with _get(url, headers, self._timeout_s) as response:
            _check_answer(response, url, self._checksum)
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                self._end_of_range(response, start)
            else:
                self._receive(response, url, start if response.status_code == requests.codes.partial_content else 0)
        self._verify(url, resumed=start > 0)

    def moved(self) -> bool:
        """Return whether bytes have come since the last call that had not come before."""
        furthest, self._furthest = self._furthest, max(self._furthest, self._received)
        return self._furthest > furthest

    def idle_s(self) -> float:
        """Return the seconds since the last byte, or since the beginning."""
        return time.monotonic() - self._last_byte_s

    def _resume_at(self, url: str) -> int:
        """Return how many bytes are here and belong to this URL's file, as far as can be told."""
        if not self._part.exists() or (self._checksum is None and url not in self._validators):
            return 0
        return self._part.stat().st_size

    def _receive(self, response: requests.Response, url: str, start: int) -> None:
        total = _total_bytes(response, start)
        if total is not None:
            require_room(self._part.parent, total - start)
        validator = response.headers.get("ETag", response.headers.get("Last-Modified", ""))
        if validator and not validator.startswith("W/"):
            self._validators[url] = validator
        self._received = start
        with naming_disk(self._part), self._part.open("ab" if start else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                self._received += len(chunk)
                self._last_byte_s = time.monotonic()
                self._progress(self._received, total, self._part.name.removeprefix(".").removesuffix(".part"))
        if total is not None and self._received != total:
            raise _BrokenTransferError(f"got {self._received} of {total} bytes")

    def _end_of_range(self, response: requests.Response, start: int) -> None:
        """Nothing follows what is here: it is the whole, or longer than the whole."""
        if response.headers.get("Content-Range") != f"bytes */{start}":
            self._part.unlink()
            raise _BrokenTransferError("what was here is longer than the file")

    def _verify(self, url: str, *, resumed: bool) -> None:
        if self._checksum is None:
            return
        algorithm, expected = self._checksum.split(":")
        found = file_digest(self._part, algorithm)
        if found == expected:
            return
        self._part.unlink()
        if resumed:
            raise _BrokenTransferError("what came before does not fit what came now")
        raise IntegrityError(
            f"{shown_url(url)} must have {algorithm.upper()} {expected}, got {found}. It was deleted: the file was "
            "changed by its publisher, or on its way here. Compare with the publisher's page before you trust it."
        )


def _get(url: str, headers: Mapping[str, str], timeout_s: tuple[float, float]) -> requests.Response:
    """Return the answer, its body to come.

    Raises:
        OrchestratorError: if the same would come again.
        _BrokenTransferError: if trying again may help.
    """
    try:
        spare_loopback()
        return requests.get(url, headers=headers, timeout=timeout_s, stream=True)
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        failure = _explained(error, shown_url(url))
    raise failure  # out here, or it would carry the other one, whose text has the URL with its signature


def _explained(error: Exception, shown: str) -> Exception:
    match error:
        case requests.exceptions.SSLError():
            return StoreAccessError(
                f"{shown} must have a certificate that this machine trusts, got {shown_reason(error)}. Set "
                "REQUESTS_CA_BUNDLE if a proxy of yours re-signs it."
            )
        case requests.TooManyRedirects():
            return StoreError(f"{shown} must lead to a file, got redirects without end. Give the direct link.")
        case requests.ConnectionError() | requests.Timeout() | urllib3.exceptions.HTTPError():
            return _BrokenTransferError(shown_reason(error))
    return ConfigError(
        f"{shown} must be an http(s) URL, got one that is malformed or leads to another kind. Correct it."
    )


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body's own bytes.

    Raises:
        _BrokenTransferError: if they end too early or come too slowly.
    """
    try:
        yield from response.raw.stream(CHUNK_BYTES, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        failure = _BrokenTransferError(shown_reason(error))
    else:
        return
    raise failure


def _check_answer(response: requests.Response, url: str, checksum: str | None) -> None:
    """Refuse an answer that is no file.

    Raises:
        OrchestratorError: if the same would come again.
        _BrokenTransferError: if the server asks to try again.
    """
    status, shown = response.status_code, shown_url(url)
    check_url(response.url, checksum)  # it may have been redirected
    if status in (404, 410):
        raise ConfigError(f"{shown} must exist, got HTTP {status}. Look up its new address.")
    if status in (401, 403, 407):
        raise StoreAccessError(
            f"{shown} must be readable without a login, got HTTP {status}. Download it in a browser and push the file."
        )
    if status in (408, 429) or status >= 500:
        raise _BrokenTransferError(f"got HTTP {status}")
    if status not in (200, 206, 416):
        raise StoreError(f"{shown} must be a file to download, got HTTP {status}. Give the direct link.")
    is_page = response.headers.get("Content-Type", "").startswith("text/html")
    if status == requests.codes.ok and is_page and not urlsplit(url).path.endswith((".html", ".htm")):
        raise ConfigError(
            f"{shown} must be a file, got a web page from {shown_url(response.url)}. Open it in a browser (it may ask "
            "to log in or to accept terms), and give the direct link or push the downloaded file."
        )


def check_url(url: str, checksum: str | None) -> None:
    """Refuse an address that is no HTTP URL, or one without TLS whose content nothing verifies."""
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError:  # of which the text may hold the URL
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise ConfigError(f"source must be an http(s) URL, got {shown_url(url)}.")
    if scheme == "http" and checksum is None and not is_loopback(host):
        raise ConfigError(
            f"{shown_url(url)} must have a checksum, since nothing protects http:// on its way, got none. "
            "Use https://, or append #sha256=HEX as its publisher states it."
        )


def _total_bytes(response: requests.Response, start: int) -> int | None:
    if start:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise _BrokenTransferError(f"got another range than the one from byte {start}")
        return int(match[2])
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _is_whole(path: Path, checksum: str | None) -> bool:
    if checksum is None:
        log.warning("using the copy that was downloaded before; delete %s to download it again", path)
        return True
    algorithm, expected = checksum.split(":")
    if file_digest(path, algorithm) == expected:
        return True
    log.warning("%s is damaged: downloading it again", path)
    path.unlink()
    return False


def _gave_up(url: str, error: Exception, policy: RetryPolicy) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{shown_url(url)} must answer within {policy.total_s:.0f} s, got {error}. Check the network and the proxy "
        "(HTTPS_PROXY), and try again: what has come is kept."
    )


def _summary(errors: list[OrchestratorError]) -> OrchestratorError:
    """Return the last URL's error, with the others' messages before its own."""
    if len(errors) == 1:
        return errors[0]
    return type(errors[-1])(" ".join(str(error) for error in errors))


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old text or the new one, whole."""
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_text(text)
    fresh.replace(path)


def no_progress(_done: int, _total: int | None, _what: str) -> None:
    """Show nothing; stands in for `Progress`."""
    pass
