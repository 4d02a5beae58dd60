"""Every byte that goes to or comes from S3: one ``Store`` with deadlines, retries and errors that name the cure."""

import base64
import builtins
import hashlib
import io
import ipaddress
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import botocore.loaders
import botocore.session
import botocore.utils
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from cluster.config import StoreSettings
from cluster.errors import ConfigError, IntegrityError, NotFoundError, PreconditionError, StoreError
from cluster.state import read_state
from cluster.store_errors import (
    BadAnswerError,
    error_code,
    exhausted_error,
    fatal_error,
    has_expired,
    is_without_credentials,
    reason,
    required,
)
from cluster.stored_json import MOST_BYTES, parse_json
from cluster.urls import shown_url

STORE_VARIABLE = "ORCHESTRATOR_STORE"
CALLS = 8  # for small objects at the same time
DELETE_BATCH = 1000  # S3's limit for one DeleteObjects
READ_BYTES = 256 * 2**10  # at most, in one look at the socket: with 512 KiB the fastest of 64 KiB to 4 MiB
MEND_ATTEMPT = 2  # of one operation; a single failure may pass by itself

log = logging.getLogger(__name__)
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for the store, in seconds."""

    total_s: float = 300.0
    """Time budget of one operation, all its attempts and pauses together; bytes that were read extend it."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    """Longest silence within an answer, and how long an object's bytes may flow at less than `min_bytes_per_s`."""
    min_bytes_per_s: float = 8 * 2**10
    """What is slower is cut and goes on over a new connection: a sixteenth of a 1 Mbit/s link, but no drip. Of
    listings and other small answers only the silence is watched."""
    expired_s: float = 60.0
    """How long to look for new credentials: enough for whoever rotates them, too short to waste machines."""
    first_pause_s: float = 0.1
    longest_pause_s: float = 10.0
    calm_s: float = 10.0
    """A burst of retries is over when the store has answered for this long without one."""

    def pause_s(self, attempt: int, *, jitter: float) -> float:
        """Return the pause after failed attempt number ``attempt`` (from 0); ``jitter`` is uniform in [0, 1)."""
        return jitter * min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(attempt, 30))


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing; ``key`` is relative to the store."""

    key: str
    size: int
    etag: str
    modified: datetime


def all_at_once(call: Callable[[S], T], items: Iterable[S]) -> builtins.list[T]:
    """What ``call`` returns for each of the items, in their order; calls that wait for a store wait together."""
    items = list(items)
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(len(items), CALLS)) as pool:
        return list(pool.map(call, items))


def named_store() -> str | None:
    """Return the store that the environment names; ``None`` when the local one is meant."""
    return os.environ.get(STORE_VARIABLE)


def open_store(url: str | None = None) -> "Store":
    """Return the store that ``url``, ``$ORCHESTRATOR_STORE`` or the local cluster names, in this order.

    ``$AWS_ENDPOINT_URL_S3`` or ``$AWS_ENDPOINT_URL`` says which server; without them a URL in the bucket of the
    running local store means that store, and any other means AWS.

    Raises:
        ConfigError: None of the three names a store, or the URL is malformed.
    """
    url = url or named_store()
    local = read_state().store
    endpoint_url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url is None:
        if local is None:
            raise ConfigError(
                "the store must be known, got none. Run `orchestrator up` for a local one, or set "
                f"{STORE_VARIABLE}=s3://BUCKET."
            )
        return Store(local.settings, mend=_mend_local)
    if local is not None and endpoint_url is None and parse_url(url)[0] == parse_url(local.settings.url)[0]:
        return Store(local.settings.model_copy(update={"url": url}), mend=_mend_local)
    return Store(
        StoreSettings(
            url=url,
            endpoint_url=endpoint_url,
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            # As for boto3, keys in the environment come before a profile in the environment.
            profile=None if "AWS_ACCESS_KEY_ID" in os.environ else os.environ.get("AWS_PROFILE"),
            credentials_file=os.environ.get("AWS_SHARED_CREDENTIALS_FILE"),
        )
    )


def _mend_local(settings: StoreSettings) -> bool:
    from cluster.local import mend_store  # with all that starts servers: needed once in a year

    return mend_store(settings)


class Store:
    """The objects under one ``s3://BUCKET/PREFIX``; every key is relative to it.

    Thread-safe. Pickles as its settings alone: each process resolves its own credentials, so no secret travels.

    Every method raises ``StoreAccessError`` when the store refuses (keys, permission, bucket, region) and
    ``StoreUnavailableError`` when it gave no usable answer within ``policy.total_s``.
    """

    def __init__(
        self,
        settings: StoreSettings,
        *,
        policy: RetryPolicy | None = None,
        mend: Callable[[StoreSettings], bool] | None = None,
    ):
        """``mend`` is called once in an operation that the server keeps failing; it stays in this process."""
        self.settings = settings
        self._mend = mend
        self.policy = policy or RetryPolicy()
        self.bucket, self.prefix = parse_url(settings.url)
        check_endpoint(settings.endpoint_url)
        self._connection: _Connection | None = None
        self._has_answered = False
        self._lock = threading.Lock()
        self._burst = _Burst(settings.url, calm_s=self.policy.calm_s)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.settings, self.policy))

    def __repr__(self) -> str:
        return f"Store({self.settings.url!r}, endpoint_url={self.settings.endpoint_url!r})"

    # ---- reading

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes:
        """Return the whole object.

        Raises:
            NotFoundError: There is no such object.
            IntegrityError: It has more than ``most_bytes``; it is not fetched then.
        """
        return self.read_with_etag(key, most_bytes=most_bytes)[0]

    def read_with_etag(self, key: str, *, most_bytes: int | None = None) -> tuple[bytes, str]:
        """Return the object and the etag that ``write(only_if_etag=...)`` takes. Raises as ``read`` does."""
        return self._download(key, _Download(key, self.policy, most_bytes=most_bytes))

    def read_range(self, key: str, *, start: int, length: int) -> bytes:
        """Return ``length`` bytes from byte ``start`` on; fewer where the object ends before.

        Raises:
            NotFoundError: There is no such object.
        """
        if start < 0 or length < 0:
            raise ValueError(f"a range must not be negative, got start={start}, length={length}")
        if length == 0:
            return b""
        return self._download(key, _Download(key, self.policy, start=start, length=length))[0]

    def read_json(self, key: str) -> Any:
        """Return the object, parsed as JSON.

        Raises:
            NotFoundError: There is no such object.
            IntegrityError: It is no JSON within the limits of ``cluster.stored_json``.
        """
        return parse_json(self.read(key, most_bytes=MOST_BYTES), where=key)

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        # Not HEAD: its errors have no body, so a missing bucket or a wrong key would look like a missing object.
        full = self._full(key)
        page = self._page(f"look up {key}", Prefix=full, MaxKeys=1)
        return any(entry["Key"] == full for entry in page.get("Contents", ()))

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """Return the sorted names directly under ``prefix`` that hold objects: ``runs`` -> ``["a", "b"]``."""
        full = self._full(prefix)
        if full and not full.endswith("/"):
            full += "/"
        pages = self._pages(f"list folders of {prefix}", Prefix=full, Delimiter="/")
        found = (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ()))
        return sorted(name.removeprefix(full).rstrip("/") for name in found)

    # ---- writing

    def write(self, key: str, data: bytes, *, only_if_absent: bool = False, only_if_etag: str | None = None) -> str:
        """Write the object whole and return its etag; the server refuses bytes that were damaged on their way.

        A condition makes the write atomic against other writers. The data of racing writers must differ (hold the
        writer's id): after a lost answer, finding our own bytes in the store counts as our success.

        Raises:
            PreconditionError: It exists already (``only_if_absent``) or is no longer ``only_if_etag``.
        """
        condition: dict[str, str] = {}
        if only_if_absent:
            condition["IfNoneMatch"] = "*"
        if only_if_etag is not None:
            condition["IfMatch"] = only_if_etag
        attempts = 0

        def put(s3: Any) -> str:
            nonlocal attempts
            attempts += 1
            answer = s3.put_object(Bucket=self.bucket, Key=self._full(key), **_upload(data, self.policy), **condition)
            return str(required(answer, "ETag"))

        try:
            return self._call(f"write {key}", put)
        except PreconditionError:
            etag = self._own_write(key, data) if attempts > 1 else None
            if etag is None:
                raise
            return etag

    def write_json(self, key: str, value: Any, **condition: Any) -> str:
        """Write ``value`` as JSON and return its etag; takes the conditions of ``write``.

        Raises:
            ValueError: It holds NaN or an infinity, which JSON has no word for.
        """
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
        return self.write(key, text.encode(), **condition)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that does not exist is no error."""
        full = [self._full(key) for key in keys]
        for first in range(0, len(full), DELETE_BATCH):
            self._delete_batch(full[first : first + DELETE_BATCH])

    # ---- preflight

    def check(self, *, deadline_s: float = 10.0) -> None:
        """Write, list, read and delete a small object, so that a wrong setting shows before any work starts.

        Raises:
            StoreAccessError: Wrong keys, no permission, no such bucket, wrong region; with the cure.
            StoreUnavailableError: No usable answer within ``deadline_s``.
        """
        ends = time.monotonic() + deadline_s
        key, data = f".check-{uuid4().hex}", os.urandom(64)
        self._probe(ends).write(key, data)
        try:
            if not self._probe(ends).exists(key) or self._probe(ends).read(key) != data:
                raise StoreError(f"{self.settings.url} must return what was written, got other bytes.")
        finally:
            self._probe(ends).delete([key])

    def arrow_filesystem(self) -> Any:
        """Return a `pyarrow.fs.S3FileSystem` of the same store, for Ray Data and others that read through Arrow.

        Its keys are the ones that boto3 has resolved in this process. They are in its pickle too: build it where it
        is used, and never send it anywhere.
        """
        from pyarrow.fs import S3FileSystem

        session, meta = _session(self.settings), self._connect().s3.meta
        keys = session.get_credentials().get_frozen_credentials()
        address = urlsplit(meta.endpoint_url)
        return S3FileSystem(
            access_key=keys.access_key,
            secret_key=keys.secret_key,
            session_token=keys.token,
            region=meta.region_name,
            scheme=address.scheme,
            endpoint_override=address.netloc if self.settings.endpoint_url else None,
        )

    def arrow_path(self, key: str) -> str:
        """Return where `arrow_filesystem` finds a key: BUCKET/KEY."""
        return f"{self.bucket}/{self._full(key)}"

    def create_bucket_if_missing(self) -> None:
        """Create the bucket; nothing happens if it is ours already."""

        def create(s3: Any) -> None:
            region = s3.meta.region_name
            outside = region not in (None, "us-east-1") and self.settings.endpoint_url is None
            where = {"CreateBucketConfiguration": {"LocationConstraint": region}} if outside else {}
            try:
                s3.create_bucket(Bucket=self.bucket, **where)
            except ClientError as error:
                if error_code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

        self._call("create the bucket", create)

    def list(self, prefix: str = "") -> builtins.list[ObjectInfo]:
        """Return the objects whose key begins with ``prefix``, sorted by key."""
        pages = self._pages(f"list {prefix}", Prefix=self._full(prefix))
        entries = (entry for page in pages for entry in page.get("Contents", ()))
        root = len(self._full(""))
        found = (
            ObjectInfo(entry["Key"][root:], entry["Size"], entry["ETag"], entry["LastModified"]) for entry in entries
        )
        return sorted(found, key=lambda info: info.key)

    # ---- below: how

    def _full(self, key: str) -> str:
        """Return the bucket's key for ours; what was read back from a bucket passes here too, so check it."""
        if key.startswith("/") or ".." in key.split("/") or "\\" in key or "\0" in key:
            raise StoreError(f"an object key must be relative, without '..' or '\\', got {key!r}.")
        return self.prefix + key

    def _probe(self, ends: float) -> "Store":
        """Return the same store with a policy that lets no operation last beyond the time ``ends``."""
        left_s = max(0.1, ends - time.monotonic())
        # The last attempt begins before 0.4 of what is left and lasts at most another 0.5.
        policy = RetryPolicy(total_s=0.4 * left_s, connect_timeout_s=0.3 * left_s, read_timeout_s=0.5 * left_s)
        return Store(self.settings, policy=policy, mend=self._mend)

    def _download(self, key: str, download: "_Download") -> tuple[bytes, str]:
        self._call(f"read {key}", lambda s3: download.run(s3, self.bucket, self._full(key)), download.patience)
        return download.data(), download.etag or ""

    def _pages(self, what: str, **arguments: Any) -> builtins.list[Mapping[str, Any]]:
        pages: list[Mapping[str, Any]] = []
        while not pages or "NextContinuationToken" in pages[-1]:
            if pages:
                arguments["ContinuationToken"] = pages[-1]["NextContinuationToken"]
            pages.append(self._page(what, **arguments))
        return pages

    def _page(self, what: str, **arguments: Any) -> Mapping[str, Any]:
        def fetch(s3: Any) -> Mapping[str, Any]:
            page: Mapping[str, Any] = s3.list_objects_v2(Bucket=self.bucket, **arguments)
            required(page, "IsTruncated")  # or a listing that is none would look like an empty folder
            return page

        return self._call(what, fetch)

    def _own_write(self, key: str, data: bytes) -> str | None:
        try:
            found, etag = self.read_with_etag(key)
        except NotFoundError:
            return None
        return etag if found == data else None

    def _delete_batch(self, full_keys: builtins.list[str]) -> None:
        request = {"Objects": [{"Key": key} for key in full_keys], "Quiet": True}

        def delete(s3: Any) -> None:
            for failure in s3.delete_objects(Bucket=self.bucket, Delete=request).get("Errors", ()):
                if failure.get("Code") != "NoSuchKey":
                    raise ClientError({"Error": failure}, "DeleteObjects")

        self._call(f"delete {len(full_keys)} objects", delete)

    def _call(self, what: str, operation: Callable[[Any], T], patience: "_Patience | None" = None) -> T:
        """Run ``operation`` on the client until it succeeds, fails for good or the patience is at its end."""
        patience = patience or _Patience(self.policy.total_s)
        renewal: _Patience | None = None
        began, attempt = time.monotonic(), 0
        while True:
            try:
                result = operation(self._connect().s3)
            except (BotoCoreError, ClientError, BadAnswerError) as error:
                fatal = fatal_error(error, settings=self.settings, what=what)
                expired = has_expired(error) or (self._has_answered and is_without_credentials(error))
                if fatal is not None and not expired:
                    raise fatal from error
                left_s = patience.left_s()
                if expired:
                    renewal = renewal or _Patience(self.policy.expired_s)
                    left_s = min(left_s, renewal.left_s())
                    self._disconnect()
                pause_s = self.policy.pause_s(attempt, jitter=random.random())
                attempt += 1
                if pause_s > left_s:
                    spent_s = time.monotonic() - began
                    raise fatal or exhausted_error(
                        error, settings=self.settings, what=what, attempts=attempt, spent_s=spent_s
                    ) from error
                self._burst.failed(what, error)
                if attempt == MEND_ATTEMPT and error_code(error) and self._mend and self._mend(self.settings):
                    patience = _Patience(self.policy.total_s)  # the server is another one now
                time.sleep(pause_s)
            else:
                self._has_answered = True
                self._burst.answered()
                return result

    def _connect(self) -> "_Connection":
        connection = self._connection
        if connection is None or connection.pid != os.getpid():  # a forked child must not share sockets
            with self._lock:
                self._connection = connection = _Connection(self.settings, self.policy)
        return connection

    def _disconnect(self) -> None:
        """Forget the client and its credentials; the next call reads the credentials afresh."""
        with self._lock:
            self._connection = None


def _rebuild(settings: StoreSettings, policy: RetryPolicy) -> Store:
    return Store(settings, policy=policy)


class _Connection:
    """The client of one process."""

    def __init__(self, settings: StoreSettings, policy: RetryPolicy):
        self.pid = os.getpid()
        self.s3 = _session(settings).client(
            "s3",
            endpoint_url=settings.endpoint_url,
            config=Config(
                connect_timeout=policy.connect_timeout_s,
                read_timeout=policy.read_timeout_s,
                retries={"total_max_attempts": 1, "mode": "standard"},  # the retries are ours: see Store._call
                max_pool_connections=32,
                tcp_keepalive=True,
                # Many S3-compatible servers know neither virtual hosts nor checksum trailers.
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        check_endpoint(self.s3.meta.endpoint_url)  # it may come from the profile
        if settings.endpoint_url is not None:
            self.s3.meta.events.register_last("before-parameter-build.s3", _stay)


def _stay(context: dict[str, Any], **_: Any) -> None:
    """Take a redirect for an error: at a given address botocore would ask for the bucket's region without end."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _session(settings: StoreSettings) -> boto3.Session:
    """Return a session over boto3's credential chain, or over the profile and file that the settings name."""
    core = botocore.session.Session(profile=settings.profile)
    core.register_component("data_loader", _loader())
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    if settings.credentials_file is not None:
        core.set_config_variable("credentials_file", settings.credentials_file)
    return boto3.Session(botocore_session=core, region_name=settings.region or _default_region(core, settings))


@cache
def _loader() -> Any:
    """Parse S3's description once in a process; for every client anew it takes five times as long."""
    return botocore.loaders.create_loader()


def _timestamp(text: Any) -> datetime:
    """Of a listing, a time for each object, which botocore's own parser takes five times as long for."""
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return cast(datetime, botocore.utils.parse_timestamp(text))


def _default_region(core: Any, settings: StoreSettings) -> str | None:
    """S3-compatible servers rarely care for a region, but the signature needs one."""
    return core.get_config_variable("region") or ("us-east-1" if settings.endpoint_url else None)


class _Patience:
    """How much longer something may take: time uses it up, every byte that moves gives some back."""

    def __init__(self, limit_s: float, *, bytes_per_s: float = float("inf")):
        self._limit_s = limit_s
        self._bytes_per_s = bytes_per_s
        self._ends = time.monotonic() + limit_s

    def moved(self, num_bytes: int) -> None:
        """Give back the time that these bytes may take, up to the limit."""
        self._ends = min(time.monotonic() + self._limit_s, self._ends + num_bytes / self._bytes_per_s)

    def left_s(self) -> float:
        return self._ends - time.monotonic()


class _Download:
    """One object or range; each attempt goes on where the last one broke off."""

    def __init__(
        self,
        name: str,
        policy: RetryPolicy,
        *,
        start: int = 0,
        length: int | None = None,
        most_bytes: int | None = None,
    ):
        self._name = name
        self.etag: str | None = None
        self.patience = _Patience(policy.total_s, bytes_per_s=policy.min_bytes_per_s)
        self._policy = policy
        self._start = start
        self._length = length
        self._most_bytes = most_bytes
        self._received = io.BytesIO()

    def run(self, s3: Any, bucket: str, key: str) -> None:
        """Fetch what is missing; an exception leaves what has come so far for the next attempt."""
        asked = self._missing()
        try:
            answer = s3.get_object(Bucket=bucket, Key=key, **asked)
        except ClientError as error:
            if error_code(error) == "InvalidRange":  # begins at or after the end: nothing (more) to read
                return
            if self.etag is not None and error_code(error) == "PreconditionFailed":
                self._restart()
            raise
        if self.etag not in (None, required(answer, "ETag")):
            self._restart()
        expected = self._check_range(answer) if "Range" in asked else answer.get("ContentLength")
        self.etag = answer["ETag"]
        if self._most_bytes is not None and expected is not None and expected > self._most_bytes:
            answer["Body"].close()
            raise IntegrityError(f"{self._name} must have at most {self._most_bytes:,} bytes, got {expected:,}.")
        self._receive(answer["Body"], expected)

    def data(self) -> bytes:
        """Return everything received."""
        return self._received.getvalue()

    def _missing(self) -> dict[str, str]:
        first = self._start + self._received.tell()
        if first == 0 and self._length is None:
            return {}
        last = "" if self._length is None else self._start + self._length - 1
        condition = {} if self.etag is None else {"IfMatch": self.etag}
        return {"Range": f"bytes={first}-{last}", **condition}

    def _restart(self) -> NoReturn:
        self.etag, self._received = None, io.BytesIO()
        raise BadAnswerError("another object than before")  # bytes of both must not mix

    def _check_range(self, answer: Mapping[str, Any]) -> int:
        """Return how many bytes are announced, if they are the ones that were asked for."""
        if answer["ResponseMetadata"]["HTTPStatusCode"] == 200:
            raise StoreError("the store must be readable by range, got the whole object. Use another S3 server.")
        first, announced = self._start + self._received.tell(), str(required(answer, "ContentRange"))
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", announced)
        if found is None or int(found[1]) != first:
            raise BadAnswerError(f"{announced!r} where bytes from {first} on were asked for")
        if found[3] != "*":
            total = int(found[3])
            stop = total if self._length is None else min(self._start + self._length, total)
            if int(found[2]) + 1 != stop:
                raise BadAnswerError(f"{announced!r} where bytes up to {stop - 1} were asked for")
        return int(found[2]) + 1 - first

    def _receive(self, body: Any, expected: int | None) -> None:
        before = self._received.tell()
        pace = _Patience(self._policy.read_timeout_s, bytes_per_s=self._policy.min_bytes_per_s)
        try:
            with body as raw:
                while piece := raw.read1(READ_BYTES):  # what is there: waiting for more would hide a drip
                    self._received.write(piece)
                    pace.moved(len(piece))
                    self.patience.moved(len(piece))
                    if pace.left_s() < 0:
                        raise BadAnswerError(f"a body of less than {self._policy.min_bytes_per_s:.0f} bytes/s")
        except HTTPError as error:
            raise BadAnswerError(f"a body that broke off ({type(error).__name__})") from error
        found = self._received.tell() - before
        if expected is not None and found != expected:
            raise BadAnswerError(f"{found} of {expected} bytes")


def _upload(data: bytes, policy: RetryPolicy) -> dict[str, Any]:
    """Return the arguments that send these bytes, with a checksum for the server to compare."""
    digest = hashlib.md5(data, usedforsecurity=False).digest()  # the one checksum that every S3 server knows
    return {"Body": _PacedBody(data, policy), "ContentMD5": base64.b64encode(digest).decode()}


class _PacedBody(io.BytesIO):
    """Bytes on their way to the store; breaks off when they are taken too slowly."""

    def __init__(self, data: bytes, policy: RetryPolicy):
        super().__init__(data)
        self._pace = _Patience(policy.read_timeout_s, bytes_per_s=policy.min_bytes_per_s)

    def read(self, size: int | None = -1, /) -> bytes:
        if self._pace.left_s() < 0:
            raise BadAnswerError("bytes taken too slowly")
        piece = super().read(size)
        self._pace.moved(len(piece))
        return piece


class _Burst:
    """Logs one line when a burst of retries begins and one when it is over, however many there are."""

    def __init__(self, name: str, *, calm_s: float):
        self._name = name
        self._calm_s = calm_s
        self._lock = threading.Lock()
        self._retries = 0
        self._began_s = 0.0
        self._answered_s: float | None = None

    def failed(self, what: str, error: Exception) -> None:
        """Note an attempt that will be repeated."""
        with self._lock:
            self._retries += 1
            self._answered_s = None
            if self._retries > 1:
                return
            self._began_s = time.monotonic()
        log.warning("%s: could not %s: %s; trying again", self._name, what, reason(error))

    def answered(self) -> None:
        """Note a call that went well."""
        if not self._retries:  # nearly always, so without the lock
            return
        with self._lock:
            now = time.monotonic()
            self._answered_s = self._answered_s or now
            if not self._retries or now - self._answered_s < self._calm_s:
                return
            retries, lasted_s = self._retries, self._answered_s - self._began_s
            self._retries = 0
        log.warning("%s: answers again after %d retries in %.1f s", self._name, retries, lasted_s)


# ---- addresses


def parse_url(url: str) -> tuple[str, str]:
    """Split ``s3://BUCKET/PREFIX`` into the bucket and ``PREFIX/`` (or an empty prefix).

    Raises:
        ConfigError: It has another form.
    """
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([^?#]*))?", url)
    if match is None or ".." in url or "//" in url.removeprefix("s3://").rstrip("/"):
        raise ConfigError(f"the store must be s3://BUCKET or s3://BUCKET/PREFIX, got {shown_url(url)!r}.")
    prefix = (match[2] or "").strip("/")
    return match[1], f"{prefix}/" if prefix else ""


def check_endpoint(endpoint_url: str | None) -> None:
    """Refuse an endpoint that would send data in the clear over a network.

    Raises:
        ConfigError: It is not http(s), or plain http to another machine.
    """
    if endpoint_url is None:
        return
    parts = urlsplit(endpoint_url)
    shown = f"{parts.scheme}://{parts.hostname}"  # not the whole: it may hold a password
    more = parts.username or parts.query or parts.fragment  # a password, or the signature of a single request
    if parts.scheme not in ("http", "https") or not parts.hostname or more:
        raise ConfigError(f"the store's endpoint must be http(s)://HOST[:PORT], got {shown}.")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigError(
            f"the store's endpoint must use https unless it is on this machine, got {shown}. "
            "Put TLS before the server, or tunnel it to 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether the host name or address is this machine and nothing else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
