"""One S3 store: its verbs, with deadlines, retries and errors that name the cure."""

import builtins
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from cluster.config import StoreSettings
from cluster.errors import ConfigError, NotFoundError, PreconditionError, StoreError
from cluster.s3.connection import Connection, check_endpoint, open_session
from cluster.s3.errors import (
    BadAnswerError,
    error_code,
    exhausted_error,
    fatal_error,
    has_expired,
    is_without_credentials,
    required,
)
from cluster.s3.retries import Burst, Retrying, RetryPolicy, TimeBudget
from cluster.s3.stored_json import MOST_BYTES, parse_json
from cluster.s3.transfers import Download, paced
from cluster.s3.urls import shown_url

CALLS = 8  # for small objects at the same time
DELETE_BATCH = 1000  # S3's limit for one DeleteObjects
MEND_ATTEMPT = 2  # of one operation; a single failure may pass by itself
S = TypeVar("S")
T = TypeVar("T")


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
        self._connection: Connection | None = None
        self._has_answered = False
        self._lock = threading.Lock()
        self._burst = Burst(settings.url, calm_s=self.policy.calm_s)

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
        return self._download(key, Download(key, self.policy, most_bytes=most_bytes))

    def read_range(self, key: str, *, start: int, length: int) -> bytes:
        """Return ``length`` bytes from byte ``start`` on; fewer where the object ends before.

        Raises:
            NotFoundError: There is no such object.
        """
        return self.read_range_with_etag(key, start=start, length=length)[0] if length else b""

    def read_range_with_etag(self, key: str, *, start: int, length: int) -> tuple[bytes, str]:
        """Return bytes of an object as ``read_range`` does, and the etag that tells whether it is the same one."""
        if start < 0 or length < 0:
            raise ValueError(f"a range must not be negative, got start={start}, length={length}")
        return self._download(key, Download(key, self.policy, start=start, length=length))

    def read_json(self, key: str) -> Any:
        """Return the object, parsed as JSON.

        Raises:
            NotFoundError: There is no such object.
            IntegrityError: It is no JSON within the limits of ``cluster.s3.stored_json``.
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
            answer = s3.put_object(Bucket=self.bucket, Key=self._full(key), **paced(data, self.policy), **condition)
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

        session, meta = open_session(self.settings), self._connect().s3.meta
        keys = session.get_credentials().get_frozen_credentials()
        address = urlsplit(meta.endpoint_url)
        return S3FileSystem(
            access_key=keys.access_key,
            secret_key=keys.secret_key,
            session_token=keys.token,
            region=meta.region_name,
            scheme=address.scheme,
            endpoint_override=address.netloc + address.path.rstrip("/") if self.settings.endpoint_url else None,
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

    def _download(self, key: str, download: "Download") -> tuple[bytes, str]:
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
            required(page, "IsTruncated")  # or an answer that is no listing would look like an empty folder
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

    def _call(self, what: str, operation: Callable[[Any], T], patience: "TimeBudget | None" = None) -> T:
        """Run ``operation`` on the client until it succeeds, fails for good or the patience is at its end."""
        retrying = Retrying(self.policy, patience)
        while True:
            try:
                result = operation(self._connect().s3)
            except (BotoCoreError, ClientError, BadAnswerError) as error:
                self._pause(what, error, retrying)
            else:
                self._has_answered = True
                self._burst.answered()
                return result

    def _pause(self, what: str, error: Exception, retrying: Retrying) -> None:
        """Wait after a failure until the next attempt.

        Raises:
            StoreError: There is none: it failed for good, or the time is up.
        """
        fatal = fatal_error(error, settings=self.settings, what=what)
        expired = has_expired(error) or (self._has_answered and is_without_credentials(error))
        if fatal is not None and not expired:
            raise fatal from error
        if expired:
            self._disconnect()
        pause_s = retrying.pause_s(expired=expired)
        if pause_s is None:
            attempts, spent_s = retrying.attempts, retrying.spent_s
            raise fatal or exhausted_error(
                error, settings=self.settings, what=what, attempts=attempts, spent_s=spent_s
            ) from error
        self._burst.failed(what, error)
        if retrying.attempts == MEND_ATTEMPT and error_code(error) and self._mend and self._mend(self.settings):
            retrying.begin_again()  # the server is another one now
        time.sleep(pause_s)

    def _connect(self) -> "Connection":
        connection = self._connection
        if connection is None or connection.pid != os.getpid():  # a forked child must not share sockets
            with self._lock:
                self._connection = connection = Connection(self.settings, self.policy)
        return connection

    def _disconnect(self) -> None:
        """Forget the client and its credentials; the next call reads the credentials afresh."""
        with self._lock:
            self._connection = None


def _rebuild(settings: StoreSettings, policy: RetryPolicy) -> Store:
    return Store(settings, policy=policy)


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
