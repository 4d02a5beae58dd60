"""What each failure of a call to S3 means: it is worth another try, or an error that names the cure."""

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    LoginError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)

from cluster.config import StoreSettings
from cluster.errors import (
    DiskFullError,
    NotFoundError,
    PreconditionError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from cluster.machine.disk import full_store_error, is_local_store
from cluster.s3.urls import shown_reason

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
FULL = {"QuotaExceeded", "InsufficientStorage", "InsufficientCapacity", "XMinioStorageFull"}
INSUFFICIENT_STORAGE = 507  # HTTP's own word for it
READS = {"GetObject", "HeadObject", "ListObjectsV2"}  # a full disk is no reason for these to fail
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
RETRYABLE = {
    *EXPIRED, "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
    "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict",
    "BadDigest", "IncompleteBody",
}  # fmt: skip


class BadAnswerError(Exception):
    """An answer that says "done" and cannot be true: cut short, of another object, or from a proxy in between."""


def required(answer: Mapping[str, Any], name: str) -> Any:
    """Return a field that every right answer has.

    Raises:
        BadAnswerError: It is missing, as in the login page of a proxy or an error sent with status 200.
    """
    if name not in answer:
        raise BadAnswerError(f"an answer without {name}")
    return answer[name]


def error_code(error: BaseException) -> str | None:
    """Return S3's own code of the error, or ``None`` when no answer came."""
    if not isinstance(error, ClientError):
        return None
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def has_expired(error: Exception) -> bool:
    """Whether fresh credentials would help: the server refuses the old ones, or their source cannot renew them."""
    sources = CredentialRetrievalError | TokenRetrievalError | SSOError | LoginError
    return error_code(error) in EXPIRED or isinstance(error, sources)


def is_without_credentials(error: Exception) -> bool:
    """Whether the source of credentials has none, as for an instant while another process writes the file anew."""
    return isinstance(error, ConfigParseError | NoCredentialsError | PartialCredentialsError | ProfileNotFound)


def reason(error: Exception) -> str:
    """Return one line about the error that holds no request, hence no signature or key."""
    if isinstance(error, BadAnswerError):
        return str(error)
    code = error_code(error)
    return f"{code} (HTTP {_status(error)})" if code else type(error).__name__


def fatal_error(error: Exception, *, settings: StoreSettings, what: str) -> Exception | None:
    """Return what to raise at once, or ``None`` when trying again may help."""
    code = error_code(error)
    if code is None:
        return _fatal_connection_error(error, settings=settings)
    assert isinstance(error, ClientError)
    cure = CURES.get(SAME_CURE.get(code, code))
    if cure is not None:
        return StoreAccessError(f"{_place(settings)} {cure} (could not {what}: {code})")
    if code in FULL or _status(error) == INSUFFICIENT_STORAGE:
        cure = "Free space there, or raise the quota."
        return DiskFullError(f"{_place(settings)} must have room to {what}, got {reason(error)}. {cure}")
    if code in ("NoSuchKey", "404", "NotFound"):
        return NotFoundError(f"{settings.url}: an object must exist to {what}, got none.")
    if code in ("PreconditionFailed", "412"):
        return PreconditionError(f"{settings.url}: to {what}, nobody else may have written it first.")
    if _status(error) >= 500 and error.operation_name not in READS and (full := full_store_error(settings)):
        return full
    if code in RETRYABLE or _status(error) >= 500 or _status(error) in (408, 429):
        return None
    return StoreError(f"{_place(settings)} must be able to {what}, got {reason(error)}.")


def exhausted_error(
    error: Exception, *, settings: StoreSettings, what: str, attempts: int, spent_s: float
) -> Exception:
    """Return what to raise when the time budget is spent."""
    if has_expired(error):
        return StoreAccessError(
            f"{_place(settings)} must get credentials that are still valid, got {error_code(error) or reason(error)}. "
            "Credentials expired: renew them (for example `aws sso login`) and run again."
        )
    cure = "Lower the request rate or try later." if error_code(error) else "Check that it runs and its address."
    if error_code(error) and is_local_store(settings):
        cure = "If its disk was full: `orchestrator up` starts it anew once there is room."
    return StoreUnavailableError(
        f"{_place(settings)} must answer to {what}, got {reason(error)} "
        f"({attempts} attempts in {spent_s:.1f} s). {cure}"
    )


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
    if isinstance(error, SSLError) and "EOF occurred" not in str(error):  # that one is a break, which may pass
        return StoreAccessError(
            f"{_place(settings)} must have a certificate that this machine trusts, got {shown_reason(error)}. "
            "Set AWS_CA_BUNDLE to its authority."
        )
    if has_expired(error):
        return None
    if isinstance(error, BadAnswerError | ConnectionError | HTTPClientError):
        return None
    return StoreAccessError(f"{_place(settings)} must be reachable as configured, got {reason(error)}.")


def _place(settings: StoreSettings) -> str:
    return f"the store {settings.url}" + (f" at {settings.endpoint_url}" if settings.endpoint_url else "")


def _status(error: Exception) -> int:
    assert isinstance(error, ClientError)
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
