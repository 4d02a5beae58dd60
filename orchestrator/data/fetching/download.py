"""Brings a source to this machine: an official dataset, an http(s) URL, an `s3://` prefix or an archive becomes a path.

Everything is kept under `$ORCHESTRATOR_HOME/downloads`, so that the next push needs no network:

    NAME/               files of an official dataset
    urls/HASH/          a file from a URL
    s3/HASH/            copies of the objects of a prefix, and their etags
    unpacked/HASH-NAME/ what an archive held, by the archive's SHA-256

A file appears under its name only when it is whole and verified; what is unfinished is hidden (`.NAME.part`), and a
lock that ends with its process keeps two processes from making the same thing.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cluster.errors import ConfigError, IntegrityError
from cluster.machine.state import home
from cluster.s3.retries import RetryPolicy
from cluster.s3.store import ObjectInfo, Store
from cluster.s3.urls import shown_url
from orchestrator.data.fetching.archives import extract, is_archive
from orchestrator.data.fetching.catalog import OFFICIAL, OfficialDataset
from orchestrator.data.fetching.disk import alone, file_digest
from orchestrator.data.fetching.http import PATIENCE, Progress, check_url, fetch, no_progress
from orchestrator.data.fetching.mirror import mirror
from orchestrator.data.sources.files import is_marker, open_source

_DIGEST_BYTES: Mapping[str, int] = {"sha256": 32, "md5": 16}


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
        ConfigError: if the source is malformed, unsafe to unpack, or a web page, or if nothing is there.
        IntegrityError: if its bytes are not those of the checksum.
        StoreAccessError: if the server wants a login, or other keys.
        StoreUnavailableError: if no server answered in time.
        DiskFullError: if the disk has no room for it.
        StoreError: if the server answers with something else than the source.
    """
    report = progress or no_progress
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


def _from_url(source: str, policy: RetryPolicy, progress: Progress) -> LocalCopy:
    url, checksum = _split_checksum(source)
    check_url(url, checksum)
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
    store = open_source(source)
    place = downloads() / "s3" / hashlib.sha256(f"{store.settings.endpoint_url} {source}".encode()).hexdigest()[:16]
    root = place / last

    def listed() -> list[ObjectInfo]:
        return [info for info in _objects(store, last if root == place else "") if root != place or info.key == last]

    if not listed() and parent != "s3:/":  # no folder: one object?
        store, root = open_source(parent), place
    if not listed():
        raise ConfigError(f"{source} must hold objects, got none. Correct the prefix or the endpoint.")
    with alone(place):
        mirror(store, listed, to=root, record=place / ".etags.json", progress=progress)
    copy = _unpacked(place / last) if is_archive(last) else place / last
    return LocalCopy(source=str(copy), uri=source, name=_stem(last))


def _objects(store: Store, prefix: str) -> list[ObjectInfo]:
    """Return the objects, without the empty ones that consoles make for folders."""
    return [info for info in store.list(prefix) if not is_marker(info)]
