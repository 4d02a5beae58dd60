"""Brings a source to this machine: an official dataset, an http(s) URL, an `s3://` prefix or an archive becomes a path.

Everything is kept under `$ORCHESTRATOR_HOME/downloads`, so that the next push needs no network:

    NAME/               files of an official dataset
    urls/HASH/          a file from a URL
    s3/HASH/            copies of the objects of a prefix, and their etags
    unpacked/HASH-NAME/ what an archive held, by the archive's SHA-256

A file appears under its name only when it is whole and verified; what is unfinished is hidden (`.NAME.part`), and a
lock that ends with its process keeps two processes from making the same thing.
"""

import fcntl
import gzip
import hashlib
import json
import logging
import lzma
import random
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import unquote, urlsplit

import requests
import urllib3.exceptions

from cluster.disk import naming_disk, require_room
from cluster.errors import (
    ConfigError,
    IntegrityError,
    NotFoundError,
    OrchestratorError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from cluster.files import read_file
from cluster.state import home
from cluster.storage import ObjectInfo, RetryPolicy, Store, is_loopback, open_store
from cluster.stored_json import MOST_BYTES, parse_json
from cluster.urls import shown_reason, shown_url
from orchestrator.data.catalog import OFFICIAL, OfficialDataset

PATIENCE = RetryPolicy(total_s=60.0, connect_timeout_s=10.0, longest_pause_s=10.0)
"""How long to wait for the next byte; a download that moves may take as long as it takes."""

_CHUNK_BYTES = 2**20
_RANGE_BYTES = 16 * 2**20  # of an S3 object in one request; bounds the memory that `_S3_THREADS` take
_S3_THREADS = 8
_FRUITLESS = 20  # attempts that came no further than one before: the file breaks off there
_ROUNDS = 3  # of copying a prefix that changes meanwhile
_MOST_RATIO = 200  # text shrinks to a tenth, sparse text to a fiftieth; a bomb to a thousandth
_SMALL_BYTES = 64 * 2**20  # below, no ratio is a danger
_MOST_ENTRIES = 5_000_000  # more than ImageNet has; each costs an inode
_MOST_HEADER_BYTES = 2**16  # of a tar's member: a path has at most 4,096, and attributes come to a few hundred
_MOST_GLOBAL_HEADERS = 1000
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
_DIGEST_BYTES: Mapping[str, int] = {"sha256": 32, "md5": 16}

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]
"""Called with the bytes so far, all bytes if known, and what they belong to."""


@dataclass(frozen=True)
class LocalCopy:
    """A source that is on this machine, and what is known about it."""

    source: str
    """What `prepare` reads: a file, a folder or the name of a bundle."""
    uri: str
    """Where it came from, for the manifest: without passwords and signatures."""
    name: str | None = None
    """A name for the dataset; ``None``: as `prepare` finds it."""
    format: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    licence: str | None = None


def local_copy(source: str, *, policy: RetryPolicy = PATIENCE, progress: Progress | None = None) -> LocalCopy:
    """Bring a source to this machine, unless it is here already.

    Args:
        source: a name in `OFFICIAL`; ``http(s)://...``, with ``#sha256=HEX`` to verify it; ``s3://BUCKET/PREFIX``,
            a folder or one object; a local archive; anything else is returned as it is.
        policy: how long to wait for a server.
        progress: told about every megabyte.

    Raises:
        ConfigError: if the source is malformed, unsafe to unpack, or a web page.
        NotFoundError: if nothing is there.
        IntegrityError: if its bytes are not those of the checksum.
        StoreAccessError: if the server wants a login, or other keys.
        StoreUnavailableError: if no server answered in time.
        DiskFullError: if the disk has no room for it.
        StoreError: if the server answers with something else than the source.
    """
    report = progress or _no_progress
    if source in OFFICIAL:
        if Path(source).exists():
            raise ConfigError(
                f"source must be one thing, got {source!r}, an official dataset and a path here. Write ./{source} for "
                "the path, or go to another folder for the official dataset."
            )
        return official_copy(OFFICIAL[source], policy=policy, progress=report)
    if url := re.match("([A-Za-z][A-Za-z0-9+.-]*)://", source):
        return _copy_of_url(url[1].lower(), source, policy, report)
    if is_archive(source) and Path(source).is_file():
        path = Path(source)
        return LocalCopy(source=str(_unpacked(path)), uri=source, name=_stem(path.name))
    return LocalCopy(source=source, uri=source)


def _copy_of_url(scheme: str, source: str, policy: RetryPolicy, progress: Progress) -> LocalCopy:
    if scheme in ("http", "https"):
        return _from_url(source, policy, progress)
    if scheme == "s3":
        return _from_s3(source, progress)
    raise ConfigError(f"source must be a path, or begin with https:// or s3://, got {shown_url(source)}. Correct it.")


def official_copy(
    dataset: OfficialDataset, *, policy: RetryPolicy = PATIENCE, progress: Progress | None = None
) -> LocalCopy:
    """Download an official dataset, verify and unpack it; see `local_copy` for the errors."""
    folder = downloads() / dataset.name
    paths = [
        fetch(file.urls, to=folder / file.name, checksum=file.checksum, policy=policy, progress=progress)
        for file in dataset.files
    ]
    root = _unpacked(paths[0], descend=False) if len(paths) == 1 and is_archive(paths[0].name) else folder
    found = sorted(root.glob(dataset.inside)) if dataset.inside else [root]
    if not found:
        raise IntegrityError(
            f"{dataset.name} must hold {dataset.inside}, got no such path in {root}. Delete {folder} and try again."
        )
    if dataset.content_sha256:
        _verify_content(found[0], dataset.content_sha256, made_of=(root, *paths))
    return LocalCopy(
        source=str(found[0]),
        uri=dataset.files[0].urls[0] if len(dataset.files) == 1 else dataset.home_page,
        name=dataset.name,
        format=dataset.format,
        options=dataset.options,
        licence=dataset.licence,
    )


def downloads() -> Path:
    """Return the folder in which all of it is kept."""
    return home() / "downloads"


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
        _check_url(url, checksum)
    with _alone(to):
        if to.exists() and _is_whole(to, checksum):
            return to
        part = to.with_name(f".{to.name}.part")
        _download(urls, _Transfer(part, checksum, policy, progress or _no_progress), policy)
        part.replace(to)
    return to


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


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
        yield from response.raw.stream(_CHUNK_BYTES, decode_content=False)
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
    _check_url(response.url, checksum)  # it may have been redirected
    if status in (404, 410):
        raise NotFoundError(f"{shown} must exist, got HTTP {status}. Look up its new address.")
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


def _check_url(url: str, checksum: str | None) -> None:
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


def _from_url(source: str, policy: RetryPolicy, progress: Progress) -> LocalCopy:
    url, checksum = _split_checksum(source)
    _check_url(url, checksum)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", unquote(PurePosixPath(urlsplit(url).path).name)).lstrip(".-") or "download"
    folder = downloads() / "urls" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = fetch(url, to=folder / name, checksum=checksum, policy=policy, progress=progress)
    digest = checksum or f"sha256:{file_digest(path)}"  # so that the manifest tells what was read
    return LocalCopy(
        source=str(_unpacked(path) if is_archive(name) else path),
        uri=f"{shown_url(url)}#{digest.replace(':', '=')}",
        name=_stem(name),
    )


def _split_checksum(source: str) -> tuple[str, str | None]:
    url, _, fragment = source.partition("#")
    if not fragment:
        return url, None
    algorithm, _, digest = fragment.lower().partition("=")
    if not re.fullmatch("[0-9a-f]*", digest) or len(digest) != 2 * _DIGEST_BYTES.get(algorithm, -1):
        raise ConfigError(
            f"what follows '#' in {shown_url(url)} must be sha256=HEX or md5=HEX, got {_described(fragment)}. "
            "Correct it, or leave it out."
        )
    return url, f"{algorithm}:{digest}"


def _described(fragment: str) -> str:
    """Tell about a fragment without repeating it: it may be the rest of a password with a '#' in it."""
    algorithm, _, digest = fragment.lower().partition("=")
    return f"{algorithm}= and {len(digest)} characters" if algorithm in _DIGEST_BYTES else "something else"


# ---- archives


def is_archive(name: str) -> bool:
    """Return whether a file of this name is unpacked before it is read."""
    return name.endswith((*_TARS, ".zip", ".gz"))


def extract(archive: Path, *, to: Path) -> Path:
    """Unpack an archive into the folder `to`, all or nothing, unless that is done already.

    Raises:
        ConfigError: if it is damaged, or holds what could do harm: a path or a link that leads out of the folder,
            a device, or far more bytes than it should.
        DiskFullError: if the disk is full.
    """
    with _alone(to):
        if to.exists():
            return to
        part = to.with_name(f".{to.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir()
        try:
            with naming_disk(part):
                _unpack(archive, part)
        except BaseException:
            shutil.rmtree(part)
            raise
        part.replace(to)
    return to


def _unpack(archive: Path, folder: Path) -> None:
    allowance = _Allowance(archive)
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, folder, allowance)
        elif archive.name.endswith(_TARS):
            _untar(archive, folder, allowance)
        else:
            _gunzip(archive, folder / archive.name.removesuffix(".gz"), allowance)
    except (*_DAMAGES, _HeaderError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{archive} must be a whole archive, got {reason}. Download it again.") from error
    except RecursionError:
        raise ConfigError(f"{archive} must be a whole archive, got headers of headers without end.") from None


def _unzip(archive: Path, folder: Path, allowance: "_Allowance") -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _check_name(member.filename, archive)
            if member.flag_bits & 0x1:
                raise ConfigError(f"{archive} must not be encrypted, got {member.filename!r}. Unpack it by hand.")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ConfigError(f"{archive} must hold no links, got {member.filename!r}. Unpack it by hand.")
            allowance.spend(member.file_size)  # zipfile reads no more than this
            file.extract(member, folder)


def _untar(archive: Path, folder: Path, allowance: "_Allowance") -> None:
    with tarfile.open(archive, tarinfo=_TarMember) as file:
        for member in file:
            member.pax_headers = {}  # tarfile keeps all members until its end
            _check_global_headers(file, archive)
            _check_name(member.name, archive)
            if member.issym() or member.islnk():
                # Stricter than the filter below, which older Pythons let themselves be talked out of (CVE-2025-4517).
                _check_name(member.linkname, archive)
            allowance.spend(member.size)
            file.extract(member, folder, filter="data")


class _HeaderError(Exception):
    """A header is larger than any that means well; no error of tarfile's, which would try another compression."""


class _TarMember(tarfile.TarInfo):
    """A member whose headers are small: tarfile reads each of them into memory, as long as it says that it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header's first block, before what it announces is read."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and member.size > _MOST_HEADER_BYTES:
            raise _HeaderError(f"a header of {member.size:,} bytes, more than {_MOST_HEADER_BYTES:,}")
        return member


def _check_global_headers(file: tarfile.TarFile, archive: Path) -> None:
    """Refuse headers for all members that grow with every one of them; each member gets a copy."""
    if len(file.pax_headers) > _MOST_GLOBAL_HEADERS:
        raise ConfigError(
            f"{archive} must have at most {_MOST_GLOBAL_HEADERS} headers for all members, got more. Do not trust it."
        )


def _gunzip(archive: Path, path: Path, allowance: "_Allowance") -> None:
    with gzip.open(archive) as source, path.open("wb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            allowance.spend(len(chunk), entries=0)
            target.write(chunk)


def _check_name(name: str, archive: Path) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise ConfigError(
            f"{archive} must hold relative paths without '..', got {name!r}. Do not trust it; or unpack it by hand."
        )


class _Allowance:
    """What an archive may still become; a bomb is refused before it fills the disk."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._most_bytes = self._bytes = _SMALL_BYTES + _MOST_RATIO * archive.stat().st_size
        self._entries = _MOST_ENTRIES

    def spend(self, num_bytes: int, *, entries: int = 1) -> None:
        """Count bytes before they are written."""
        if num_bytes < 0:
            raise ConfigError(f"{self._archive} must be a whole archive, got a file of {num_bytes} bytes.")
        self._bytes -= num_bytes
        self._entries -= entries
        if self._bytes < 0 or self._entries < 0:
            raise ConfigError(
                f"{self._archive} must unpack to at most {self._most_bytes} bytes ({_MOST_RATIO} times its size) in "
                f"{_MOST_ENTRIES} files, got more. Do not trust it; or unpack it by hand."
            )


def _unpacked(archive: Path, *, descend: bool = True) -> Path:
    """Return what an archive holds: its only file or folder, or the folder of all."""
    folder = downloads() / "unpacked" / f"{file_digest(archive)[:16]}-{_stem(archive.name)}"
    extract(archive, to=folder)
    entries = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    while descend and len(entries) == 1:
        folder = entries[0]
        entries = list(folder.iterdir()) if folder.is_dir() else []
    return folder


def _verify_content(folder: Path, expected: str, *, made_of: Sequence[Path]) -> None:
    lines = (f"{file_digest(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    found = hashlib.sha256("".join(lines).encode()).hexdigest()
    if found != expected:
        for path in made_of:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise IntegrityError(
            f"the files of {folder.name} must have SHA-256 {expected} together, got {found}. They were deleted: the "
            "dataset was changed by its publisher, or on its way here."
        )


def _stem(name: str) -> str:
    """Return a name for the dataset that a file or folder of this name holds."""
    for suffix in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(suffix)
    return re.sub("[^a-z0-9]+", "-", PurePosixPath(name).stem.lower()).strip("-")[:63] or "dataset"


# ---- objects of a bucket


def _from_s3(source: str, progress: Progress) -> LocalCopy:
    source = source.rstrip("/")
    parent, _, last = source.rpartition("/")
    store = open_store(source)
    place = downloads() / "s3" / hashlib.sha256(f"{store.settings.endpoint_url} {source}".encode()).hexdigest()[:16]
    root = place / last

    def listed() -> list[ObjectInfo]:
        return [info for info in _objects(store, last if root == place else "") if root != place or info.key == last]

    if not listed() and parent != "s3:/":  # no folder: one object?
        store, root = open_store(parent), place
    if not listed():
        raise NotFoundError(f"{source} must hold objects, got none. Correct the prefix or the endpoint.")
    with _alone(place):
        mirror(store, listed, to=root, record=place / ".etags.json", progress=progress)
    copy = _unpacked(place / last) if is_archive(last) else place / last
    return LocalCopy(source=str(copy), uri=source, name=_stem(last))


def mirror(
    store: Store,
    listed: Callable[[], list[ObjectInfo]],
    *,
    to: Path,
    record: Path,
    progress: Progress | None = None,
) -> None:
    """Make a folder hold what a listing names, fetching only objects that have changed since the last time.

    Args:
        store: what the keys are relative to.
        listed: lists the objects; called again at the end, since objects may change while they are copied.
        to: the folder.
        record: a file that remembers the etags.
        progress: told about every object.

    Raises:
        ConfigError: if a key cannot be a path.
        StoreError: if the objects change all the time.
        DiskFullError: if the disk has no room for them.
    """
    objects = listed()
    for _ in range(_ROUNDS):
        _check_keys([info.key for info in objects], store)
        _copy_changes(store, objects, to, record, progress or _no_progress)
        before, objects = objects, listed()
        if [(info.key, info.etag) for info in objects] == [(info.key, info.etag) for info in before]:
            return
    raise StoreError(f"{store.settings.url} must stay the same while it is copied, got changes {_ROUNDS} times. Wait.")


def _objects(store: Store, prefix: str) -> list[ObjectInfo]:
    """Return the objects, without the empty ones that consoles make for folders."""
    return [info for info in store.list(prefix) if not info.key.endswith("/")]


def _check_keys(keys: Sequence[str], store: Store) -> None:
    folders = {str(parent) for key in keys for parent in PurePosixPath(key).parents}
    for key in keys:
        odd = (
            str(PurePosixPath(key)) != key
            or key.startswith("/")
            or ".." in key.split("/")
            or "\\" in key
            or "\0" in key
        )
        if odd or key in folders or len(key.rpartition("/")[2].encode()) > 240:  # a file name has 255
            raise ConfigError(
                f"an object of {store.settings.url} must have a key that can be a file's path, got {key!r}. Rename it."
            )


def _copy_changes(store: Store, objects: Sequence[ObjectInfo], to: Path, record: Path, progress: Progress) -> None:
    etags = _read_etags(record)
    for key in etags.keys() - {info.key for info in objects}:
        _remove(to, key)
        del etags[key]
    changed = [info for info in objects if etags.get(info.key) != info.etag or not _has_size(to / info.key, info.size)]
    total, done = sum(info.size for info in changed), 0
    to.mkdir(parents=True, exist_ok=True)
    require_room(to, total)
    pool = ThreadPoolExecutor(_S3_THREADS, thread_name_prefix="s3-copy")
    try:
        for info in pool.map(lambda info: _copy_object(store, info, to / info.key), changed):
            etags[info.key] = info.etag
            done += info.size
            progress(done, total, info.key)
    finally:
        pool.shutdown(cancel_futures=True)
        _replace_text(record, json.dumps(etags))  # what is here need not come again


def _read_etags(record: Path) -> dict[str, str]:
    """Return what was copied the last time; a record that is damaged is none, and everything is fetched again."""
    try:
        found = parse_json(read_file(record, most_bytes=MOST_BYTES), where=str(record)) if record.exists() else {}
    except (ConfigError, IntegrityError) as error:
        log.warning("copying all objects again: %s", error)
        found = {}
    return {str(key): str(etag) for key, etag in found.items()} if isinstance(found, dict) else {}


def _copy_object(store: Store, info: ObjectInfo, path: Path) -> ObjectInfo:
    """Copy one object, and compare its MD5 with its etag, if that is one; else two copies must be the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    etag = info.etag.strip('"')
    seen: list[str] = []
    while len(seen) < 3:
        digest = _copy_ranges(store, info, part)
        if digest == etag or not re.fullmatch("[0-9a-f]{32}", etag) or digest in seen:  # encrypted buckets: no MD5
            part.replace(path)
            return info
        seen.append(digest)
    raise IntegrityError(
        f"{info.key} of {store.settings.url} must come the same twice, got {len(seen)} different bodies."
    )


def _copy_ranges(store: Store, info: ObjectInfo, part: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with naming_disk(part), part.open("wb") as file:
        for start in range(0, info.size, _RANGE_BYTES):
            data = store.read_range(info.key, start=start, length=min(_RANGE_BYTES, info.size - start))
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _remove(root: Path, key: str) -> None:
    (root / key).unlink(missing_ok=True)
    for parent in PurePosixPath(key).parents:
        if parent == PurePosixPath(".") or not (root / parent).is_dir() or any((root / parent).iterdir()):
            return
        (root / parent).rmdir()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


# ---- the disk


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Make what `path` is to hold in one process and thread at a time; the lock ends with its process."""
    with naming_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is making %s: waiting for it", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace_text(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_text(text)
    fresh.replace(path)


def _no_progress(_done: int, _total: int | None, _what: str) -> None:
    pass
