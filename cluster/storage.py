"""Every byte that goes to or comes from S3: one ``Store`` with deadlines, retries and errors that name the cure."""

import builtins
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
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)

from cluster.config import StoreSettings
from cluster.errors import (
    ConfigError,
    NotFoundError,
    PreconditionError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from cluster.state import read_state

STORE_VARIABLE = "ORCHESTRATOR_STORE"
MULTIPART_BYTES = 64 * 2**20  # above this a file goes up in parts, so that a break costs one part, not all
PART_BYTES = 16 * 2**20
PART_THREADS = 4
DELETE_BATCH = 1000  # S3's limit for one DeleteObjects

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for the store, in seconds."""

    total_s: float = 300.0
    """Time budget of one operation, all its attempts and pauses together."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    """Longest silence within an answer."""
    first_pause_s: float = 0.1
    longest_pause_s: float = 10.0

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
        return Store(local.settings)
    if local is not None and endpoint_url is None and parse_url(url)[0] == parse_url(local.settings.url)[0]:
        return Store(local.settings.model_copy(update={"url": url}))
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


class Store:
    """The objects under one ``s3://BUCKET/PREFIX``; every key is relative to it.

    Thread-safe. Pickles as its settings alone: each process resolves its own credentials, so no secret travels.

    Every method raises ``StoreAccessError`` when the store refuses (keys, permission, bucket, region) and
    ``StoreUnavailableError`` when it gave no usable answer within ``policy.total_s``.
    """

    def __init__(self, settings: StoreSettings, *, policy: RetryPolicy | None = None):
        self.settings = settings
        self.policy = policy or RetryPolicy()
        self.bucket, self.prefix = parse_url(settings.url)
        check_endpoint(settings.endpoint_url)
        self._connection: _Connection | None = None
        self._lock = threading.Lock()
        self._burst = _Burst(settings.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.settings, self.policy))

    def __repr__(self) -> str:
        return f"Store({self.settings.url!r}, endpoint_url={self.settings.endpoint_url!r})"

    # ---- reading

    def read(self, key: str) -> bytes:
        """Return the whole object.

        Raises:
            NotFoundError: There is no such object.
        """
        return self.read_with_etag(key)[0]

    def read_with_etag(self, key: str) -> tuple[bytes, str]:
        """Return the object and the etag that ``write(only_if_etag=...)`` takes."""
        download = _Download()
        self._call(f"read {key}", lambda s3: download.run(s3, self.bucket, self._full(key)))
        assert download.etag is not None
        return download.data(), download.etag

    def read_range(self, key: str, *, start: int, length: int) -> bytes:
        """Return ``length`` bytes from byte ``start`` on; fewer where the object ends before.

        Raises:
            NotFoundError: There is no such object.
        """
        if start < 0 or length < 0:
            raise ValueError(f"a range must not be negative, got start={start}, length={length}")
        if length == 0:
            return b""
        download = _Download(start=start, length=length)
        self._call(f"read {key}", lambda s3: download.run(s3, self.bucket, self._full(key)))
        return download.data()

    def read_json(self, key: str) -> Any:
        """Return the object, parsed as JSON."""
        return json.loads(self.read(key))

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        # Not HEAD: its errors have no body, so a missing bucket or a wrong key would look like a missing object.
        full = self._full(key)
        page = self._call(
            f"look up {key}",
            lambda s3: s3.list_objects_v2(Bucket=self.bucket, Prefix=full, MaxKeys=1),
        )
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
        """Write the object whole and return its etag.

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
            answer = s3.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, **condition)
            return str(answer["ETag"])

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

    def write_file(self, key: str, path: str | Path) -> None:
        """Write a local file; a large one goes up in parts, in parallel, and appears whole or not at all."""
        path = Path(path)
        if path.stat().st_size <= MULTIPART_BYTES:
            self.write(key, path.read_bytes())
        else:
            self._write_parts(key, path)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that does not exist is no error."""
        full = [self._full(key) for key in keys]
        for first in range(0, len(full), DELETE_BATCH):
            self._delete_batch(full[first : first + DELETE_BATCH])

    # ---- preflight

    def check(self, *, deadline_s: float = 10.0) -> None:
        """Write, read and delete a small object, so that a wrong setting shows before any work starts.

        Raises:
            StoreAccessError: Wrong keys, no permission, no such bucket, wrong region; with the cure.
            StoreUnavailableError: No usable answer within ``deadline_s``.
        """
        # The last attempt begins before 0.4 of the deadline and lasts at most another 0.5.
        policy = RetryPolicy(
            total_s=0.4 * deadline_s, connect_timeout_s=0.3 * deadline_s, read_timeout_s=0.5 * deadline_s
        )
        probe = Store(self.settings, policy=policy)
        key, data = f".check-{uuid4().hex}", os.urandom(64)
        probe.write(key, data)
        try:
            if probe.read(key) != data:
                raise StoreError(f"{self.settings.url} must return what was written, got other bytes.")
        finally:
            probe.delete([key])

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

    def _pages(self, what: str, **arguments: Any) -> builtins.list[Mapping[str, Any]]:
        pages: list[Mapping[str, Any]] = []
        while not pages or "NextContinuationToken" in pages[-1]:
            if pages:
                arguments["ContinuationToken"] = pages[-1]["NextContinuationToken"]
            pages.append(self._call(what, lambda s3: s3.list_objects_v2(Bucket=self.bucket, **arguments)))
        return pages

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

    def _write_parts(self, key: str, path: Path) -> None:
        target = {"Bucket": self.bucket, "Key": self._full(key)}
        upload = self._call(f"begin {key}", lambda s3: s3.create_multipart_upload(**target)["UploadId"])

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * PART_BYTES)
                body = file.read(PART_BYTES)
            part = {"UploadId": upload, "PartNumber": number, "Body": body}
            answer = self._call(f"write part {number} of {key}", lambda s3: s3.upload_part(**target, **part))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(PART_THREADS) as pool:
                parts = [*pool.map(send, range(1, -(-path.stat().st_size // PART_BYTES) + 1))]
            done = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
            self._call(f"finish {key}", lambda s3: s3.complete_multipart_upload(**target, **done))
        except BaseException:
            self._call(f"abandon {key}", lambda s3: s3.abort_multipart_upload(**target, UploadId=upload))
            raise

    def _call(self, what: str, operation: Callable[[Any], T]) -> T:
        """Run ``operation`` on the client until it succeeds, fails for good or the time budget is spent."""
        began = time.monotonic()
        attempt = 0
        while True:
            try:
                return operation(self._connect().s3)
            except (BotoCoreError, ClientError) as error:
                if (fatal := fatal_error(error, settings=self.settings, what=what)) is not None:
                    raise fatal from error
                pause_s = self.policy.pause_s(attempt, jitter=random.random())
                spent_s = time.monotonic() - began
                if spent_s + pause_s > budget_s(error, self.policy):
                    raise exhausted_error(
                        error, settings=self.settings, what=what, attempts=attempt + 1, spent_s=spent_s
                    ) from error
                self._burst.note(what, error)
                if error_code(error) in EXPIRED:
                    self._disconnect()
                time.sleep(pause_s)
                attempt += 1

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


def _session(settings: StoreSettings) -> boto3.Session:
    """Return a session over boto3's credential chain, or over the profile and file that the settings name."""
    core = botocore.session.Session(profile=settings.profile)
    core.register_component("data_loader", _loader())
    if settings.credentials_file is not None:
        core.set_config_variable("credentials_file", settings.credentials_file)
    return boto3.Session(botocore_session=core, region_name=settings.region or _default_region(core, settings))


@cache
def _loader() -> Any:
    """Parse S3's description once in a process; for every client anew it takes five times as long."""
    return botocore.loaders.create_loader()


def _default_region(core: Any, settings: StoreSettings) -> str | None:
    """S3-compatible servers rarely care for a region, but the signature needs one."""
    return core.get_config_variable("region") or ("us-east-1" if settings.endpoint_url else None)


@dataclass
class _Download:
    """One object or range; each attempt goes on where the last one broke off."""

    start: int = 0
    length: int | None = None
    etag: str | None = None
    chunks: list[bytes] = field(default_factory=list)
    received: int = 0

    def run(self, s3: Any, bucket: str, key: str) -> None:
        """Fetch what is missing; an exception leaves what has come so far for the next attempt."""
        remaining = self._remaining()
        try:
            answer = s3.get_object(Bucket=bucket, Key=key, **remaining)
        except ClientError as error:
            if error_code(error) == "InvalidRange":  # begins at or after the end: nothing (more) to read
                return
            if self.etag is None or error_code(error) != "PreconditionFailed":
                raise
            self._restart()  # it was replaced since the last attempt: bytes of both must not mix
            self.run(s3, bucket, key)
            return
        if "Range" in remaining and "ContentRange" not in answer:
            raise StoreError(f"s3://{bucket}/{key} must be readable by range, got the whole. Use another S3 server.")
        self.etag = answer["ETag"]
        for chunk in answer["Body"].iter_chunks(4 * 2**20):
            self.chunks.append(chunk)
            self.received += len(chunk)

    def data(self) -> bytes:
        """Return everything received."""
        return self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)

    def _remaining(self) -> dict[str, str]:
        first = self.start + self.received
        if first == 0 and self.length is None:
            return {}
        last = "" if self.length is None else self.start + self.length - 1
        condition = {} if self.etag is None else {"IfMatch": self.etag}
        return {"Range": f"bytes={first}-{last}", **condition}

    def _restart(self) -> None:
        self.etag, self.chunks, self.received = None, [], 0


class _Burst:
    """One log line for a burst of retries, not one for each."""

    QUIET_S = 60.0

    def __init__(self, name: str):
        self._name = name
        self._lock = threading.Lock()
        self._last_line_s = float("-inf")
        self._unsaid = 0

    def note(self, what: str, error: Exception) -> None:
        with self._lock:
            self._unsaid += 1
            if time.monotonic() - self._last_line_s < self.QUIET_S:
                return
            count, self._unsaid, self._last_line_s = self._unsaid, 0, time.monotonic()
        line = "%s: could not %s: %s; retrying (%d retries since the last such line)"
        log.warning(line, self._name, what, _reason(error), count)


# ---- addresses


def parse_url(url: str) -> tuple[str, str]:
    """Split ``s3://BUCKET/PREFIX`` into the bucket and ``PREFIX/`` (or an empty prefix).

    Raises:
        ConfigError: It has another form.
    """
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([^?#]*))?", url)
    if match is None or ".." in url or "//" in url.removeprefix("s3://").rstrip("/"):
        raise ConfigError(f"the store must be s3://BUCKET or s3://BUCKET/PREFIX, got {url!r}.")
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
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
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


# ---- errors

EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
EXPIRED_BUDGET_S = 60.0  # long enough for whoever rotates the keys, short enough not to waste machines

CURES: Mapping[str, str] = {
    "InvalidAccessKeyId": "must know the access key, got one that it does not. Check AWS_ACCESS_KEY_ID or the profile.",
    "SignatureDoesNotMatch": "must accept the secret key, got a signature that does not match. "
    "Check AWS_SECRET_ACCESS_KEY or the profile.",
    "InvalidToken": "must accept the session token, got an invalid one. Check AWS_SESSION_TOKEN, or unset it.",
    "AccessDenied": "must be allowed for these keys, got AccessDenied. "
    "Grant read, write, list and delete on the bucket and prefix.",
    "NoSuchBucket": "must name an existing bucket, got none of that name. Create the bucket or correct the URL.",
    "PermanentRedirect": "must be reached in its own region, got a redirect. Set AWS_REGION to the bucket's region.",
    "RequestTimeTooSkewed": "must see nearly the same time as this machine, got a larger difference. Set the clock.",
    "InvalidBucketName": "must name a valid bucket, got one that the server refuses. Correct the URL.",
    "QuotaExceeded": "must have room, got QuotaExceeded. Free space or raise the quota.",
}
SAME_CURE = {
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "TemporaryRedirect": "PermanentRedirect",
    "301": "PermanentRedirect",
    "307": "PermanentRedirect",
    "401": "AccessDenied",
    "403": "AccessDenied",
    "Forbidden": "AccessDenied",
}
RETRYABLE = {
    *EXPIRED, "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
    "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict",
    "BadDigest", "IncompleteBody",
}  # fmt: skip


def error_code(error: BaseException) -> str | None:
    """Return S3's own code of the error, or ``None`` when no answer came."""
    if not isinstance(error, ClientError):
        return None
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def fatal_error(error: Exception, *, settings: StoreSettings, what: str) -> Exception | None:
    """Return what to raise at once, or ``None`` when trying again may help."""
    code = error_code(error)
    if code is None:
        return _fatal_connection_error(error, settings=settings)
    cure = CURES.get(SAME_CURE.get(code, code))
    if cure is not None:
        return StoreAccessError(f"{_place(settings)} {cure} (could not {what}: {code})")
    if code in ("NoSuchKey", "404", "NotFound"):
        return NotFoundError(f"{settings.url}: an object must exist to {what}, got none.")
    if code in ("PreconditionFailed", "412"):
        return PreconditionError(f"{settings.url}: to {what}, nobody else may have written it first.")
    if code in RETRYABLE or _status(error) >= 500 or _status(error) in (408, 429):
        return None
    return StoreError(f"{_place(settings)} must be able to {what}, got {_reason(error)}.")


def exhausted_error(
    error: Exception, *, settings: StoreSettings, what: str, attempts: int, spent_s: float
) -> Exception:
    """Return what to raise when the time budget is spent."""
    if error_code(error) in EXPIRED:
        return StoreAccessError(
            f"{_place(settings)} must get credentials that are still valid, got {error_code(error)}. "
            "Credentials expired: renew them (for example `aws sso login`) and run again."
        )
    cure = "Lower the request rate or try later." if error_code(error) else "Check that it runs and its address."
    return StoreUnavailableError(
        f"{_place(settings)} must answer to {what}, got {_reason(error)} "
        f"({attempts} attempts in {spent_s:.1f} s). {cure}"
    )


def budget_s(error: Exception, policy: RetryPolicy) -> float:
    """Return how long an operation that fails like this may be tried."""
    return min(policy.total_s, EXPIRED_BUDGET_S) if error_code(error) in EXPIRED else policy.total_s


def _fatal_connection_error(error: Exception, *, settings: StoreSettings) -> Exception | None:
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreAccessError(
            f"{_place(settings)} must get credentials, got none. Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        )
    if isinstance(error, ProfileNotFound):
        return StoreAccessError(
            f"the AWS profile must exist, got {settings.profile!r}. Check AWS_PROFILE and ~/.aws/config."
        )
    if isinstance(error, SSLError):
        return StoreAccessError(
            f"{_place(settings)} must have a certificate that this machine trusts, got {_reason(error)}. "
            "Set AWS_CA_BUNDLE to its authority."
        )
    if isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError):
        return None
    return StoreAccessError(f"{_place(settings)} must be reachable as configured, got {_reason(error)}.")


def _place(settings: StoreSettings) -> str:
    return f"the store {settings.url}" + (f" at {settings.endpoint_url}" if settings.endpoint_url else "")


def _status(error: Exception) -> int:
    assert isinstance(error, ClientError)
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _reason(error: Exception) -> str:
    """Return one line about the error that holds no request, hence no signature or key."""
    code = error_code(error)
    return f"{code} (HTTP {_status(error)})" if code else type(error).__name__
