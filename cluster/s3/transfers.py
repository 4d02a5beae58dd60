"""Bodies of requests and answers: verified, with a deadline that only silence uses up."""

import base64
import hashlib
import io
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from botocore.exceptions import ClientError
from urllib3.exceptions import HTTPError

from cluster.errors import IntegrityError, StoreError
from cluster.s3.errors import BadAnswerError, error_code, required
from cluster.s3.retries import RetryPolicy, TimeBudget

READ_BYTES = 256 * 2**10  # at most, in one look at the socket: with 512 KiB the fastest of 64 KiB to 4 MiB


class Download:
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
        self.patience = TimeBudget(policy.total_s, bytes_per_s=policy.min_bytes_per_s)
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
        pace = TimeBudget(self._policy.read_timeout_s, bytes_per_s=self._policy.min_bytes_per_s)
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


def paced(data: bytes, policy: RetryPolicy) -> dict[str, Any]:
    """Return the arguments that send these bytes, with a checksum for the server to compare."""
    digest = hashlib.md5(data, usedforsecurity=False).digest()  # the one checksum that every S3 server knows
    return {"Body": _PacedBody(data, policy), "ContentMD5": base64.b64encode(digest).decode()}


class _PacedBody(io.BytesIO):
    """Bytes on their way to the store; breaks off when they are taken too slowly."""

    def __init__(self, data: bytes, policy: RetryPolicy):
        super().__init__(data)
        self._pace = TimeBudget(policy.read_timeout_s, bytes_per_s=policy.min_bytes_per_s)

    def read(self, size: int | None = -1, /) -> bytes:
        if self._pace.left_s() < 0:
            raise BadAnswerError("bytes taken too slowly")
        piece = super().read(size)
        self._pace.moved(len(piece))
        return piece
