"""Reads from a cloud's metadata service whether it is about to take this machine away."""

import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Annotated, Protocol, TypeVar
from urllib.parse import urlsplit

import urllib3
from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, ValidationError

from cluster.errors import ClusterError, ConfigError
from cluster.s3.urls import shown_url

METADATA_VARIABLE = "ORCHESTRATOR_METADATA_URL"
LINK_LOCAL_URL = "http://169.254.169.254"  # where all three clouds answer
CONNECT_S = 0.5  # the service is on the same host; where there is none, this is what finding out costs
REQUEST_S = 1.0
FIRST_EVENTS_S = 130.0  # Azure: the first request for events turns them on, and may take two minutes
GCP_WARNING_S = 30.0  # between `preempted` and the machine's end; 120 s where the longer notice was asked for
TOKEN_TTL_S = 21600  # the longest that AWS grants

AZURE_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
AZURE_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
AZURE_ENDINGS = {"Preempt", "Terminate"}  # after Freeze, Reboot and Redeploy the machine comes back

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Notice:
    """What a cloud says about the end of this machine."""

    cloud: str
    """``aws``, ``gcp`` or ``azure``."""
    action: str
    """The cloud's own word: ``terminate``, ``stop``, ``hibernate``, ``preempt``, ``maintenance`` or ``rebalance``."""
    deadline: float | None
    """Unix seconds until which the machine stays; ``None`` when the cloud names no time."""
    detail: str
    """One line for people."""

    @property
    def certain(self) -> bool:
        """False for a recommendation only: the machine may stay for hours, or for ever."""
        return self.action != "rebalance"


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    text: str


class MetadataEndpoint:
    """HTTP to one address next door: no proxy, no redirect, no retry, short deadlines."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port or 80)
        self._pool = urllib3.PoolManager(num_pools=1)  # which, unlike a session of requests, knows no proxy variables

    def listens(self) -> bool:
        """Whether anybody accepts a connection within ``CONNECT_S``."""
        try:
            socket.create_connection(self._address, timeout=CONNECT_S).close()
        except OSError:
            return False
        return True

    def request(
        self, path: str, *, headers: Mapping[str, str], method: str = "GET", timeout_s: float = REQUEST_S
    ) -> Reply:
        """Return the answer, whatever its status.

        Raises:
            ClusterError: None came in time.
        """
        timeout = urllib3.Timeout(connect=CONNECT_S, read=timeout_s)
        try:
            reply = self._pool.request(
                method, self._url + path, headers=headers, timeout=timeout, retries=False, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise ClusterError(
                f"the metadata service at {self._url} must answer within {timeout_s:g} s, got {type(error).__name__}."
            ) from error
        return Reply(reply.status, reply.headers, reply.data.decode(errors="replace"))


class MetadataService(Protocol):
    """One cloud's service, found on this machine."""

    cloud: str
    interval_s: float
    """How often to ask."""

    def read(self) -> Notice | None:
        """Return the notice that stands, or ``None``.

        Raises:
            ClusterError: No answer, or none that can be understood; the next one may be good.
        """


def metadata_url() -> str:
    """Return where the metadata service is asked for: ``$ORCHESTRATOR_METADATA_URL``, or the link-local address.

    Raises:
        ConfigError: The variable holds no ``http://HOST:PORT``.
    """
    url = os.environ.get(METADATA_VARIABLE, LINK_LOCAL_URL).removesuffix("/")
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.username or parts.path or parts.query:
        raise ConfigError(f"{METADATA_VARIABLE} must be http://HOST:PORT, got {shown_url(url)!r}.")
    return url


def find_service(url: str) -> MetadataService | None:
    """Return the metadata service that answers at ``url``, or ``None`` as on a laptop, after ``CONNECT_S``.

    Where something else listens there, each of the three clouds' questions costs at most ``REQUEST_S``.
    """
    endpoint = MetadataEndpoint(url)
    if not endpoint.listens():
        return None
    for find in (Aws.find, Gcp.find, Azure.find):
        with suppress(ClusterError):  # it does not know this question
            service = find(endpoint)
            if service is not None:
                return service
    return None


class _InstanceAction(BaseModel):
    action: str
    time: AwareDatetime | None = None


class Aws:
    """EC2: a spot instance's interruption is announced two minutes ahead; ask every 5 seconds.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
    Every request carries a token (IMDSv2); 404 means that there is no notice.
    """

    cloud = "aws"
    interval_s = 5.0

    def __init__(self, endpoint: MetadataEndpoint, token: str) -> None:
        self._endpoint = endpoint
        self._token = token

    @classmethod
    def find(cls, endpoint: MetadataEndpoint) -> "Aws | None":
        """Return the service if it grants a token."""
        token = _aws_token(endpoint)
        return None if token is None else cls(endpoint, token)

    def read(self) -> Notice | None:
        """Return the interruption, else the recommendation to move away, else ``None``."""
        text = self._get("/latest/meta-data/spot/instance-action")
        if text is not None:
            found = _parsed(_InstanceAction, text, self.cloud)
            deadline = None if found.time is None else found.time.timestamp()
            return Notice(self.cloud, found.action, deadline, f"EC2 will {found.action} this spot instance")
        if self._get("/latest/meta-data/events/recommendations/rebalance") is not None:
            return Notice(self.cloud, "rebalance", None, "EC2 sees a higher risk for this spot instance")
        return None

    def _get(self, path: str) -> str | None:
        reply = self._ask(path)
        if reply.status == 401:  # the token has expired
            self._token = _aws_token(self._endpoint) or self._token
            reply = self._ask(path)
        if reply.status == 404:
            return None
        return _text(reply, path)

    def _ask(self, path: str) -> Reply:
        return self._endpoint.request(path, headers={"X-aws-ec2-metadata-token": self._token})


def _aws_token(endpoint: MetadataEndpoint) -> str | None:
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
    reply = endpoint.request("/latest/api/token", method="PUT", headers=headers)
    is_token = reply.status == 200 and re.fullmatch("[!-~]+", reply.text)
    return reply.text if is_token else None


class Gcp:
    """Compute Engine: `preempted` turns TRUE up to 30 s before a spot machine is switched off.

    https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
    https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
    A machine that cannot move while it runs (one with GPUs) learns of its host's maintenance from a key of its own,
    60 minutes before with GPUs and 60 seconds before otherwise, which is why that notice has no deadline here.
    """

    cloud = "gcp"
    interval_s = 1.0

    def __init__(self, endpoint: MetadataEndpoint) -> None:
        self._endpoint = endpoint

    @classmethod
    def find(cls, endpoint: MetadataEndpoint) -> "Gcp | None":
        """Return the service if the answer bears Google's header."""
        reply = _gcp_ask(endpoint, "preempted")
        return cls(endpoint) if reply.status == 200 and reply.headers.get("Metadata-Flavor") == "Google" else None

    def read(self) -> Notice | None:
        """Return the preemption, else the end through maintenance, else ``None``."""
        if self._value("preempted", {"TRUE", "FALSE"}) == "TRUE":
            deadline = time.time() + GCP_WARNING_S
            return Notice(self.cloud, "preempt", deadline, "Compute Engine preempts this spot machine")
        events = {"NONE", "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"}
        if self._value("maintenance-event", events) == "TERMINATE_ON_HOST_MAINTENANCE":
            return Notice(self.cloud, "maintenance", None, "Compute Engine stops this machine to maintain its host")
        return None

    def _value(self, key: str, allowed: set[str]) -> str:
        text = _text(_gcp_ask(self._endpoint, key), key).strip()
        if text not in allowed:
            raise ClusterError(f"the metadata key {key} must be one of {sorted(allowed)}, got {text[:80]!r}.")
        return text


def _gcp_ask(endpoint: MetadataEndpoint, key: str) -> Reply:
    return endpoint.request(f"/computeMetadata/v1/instance/{key}", headers={"Metadata-Flavor": "Google"})


def _http_date(text: object) -> object:
    return parsedate_to_datetime(text) if isinstance(text, str) and text else None


class _Event(BaseModel):
    kind: str = Field(alias="EventType")
    resources: list[str] = Field(alias="Resources")
    not_before: Annotated[AwareDatetime | None, BeforeValidator(_http_date)] = Field(alias="NotBefore", default=None)
    """Blank once the event has started."""


class _Events(BaseModel):
    events: list[_Event] = Field(alias="Events")


class Azure:
    """Scheduled events: a spot machine's eviction is announced 30 s ahead; ask every second.

    https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events
    The machines of a scale set see each other's events, so an event counts only where it names this machine.
    """

    cloud = "azure"
    interval_s = 1.0

    def __init__(self, endpoint: MetadataEndpoint, name: str) -> None:
        self._endpoint = endpoint
        self._name = name.casefold()
        self._timeout_s = FIRST_EVENTS_S

    @classmethod
    def find(cls, endpoint: MetadataEndpoint) -> "Azure | None":
        """Return the service if it knows this machine's name."""
        reply = endpoint.request(AZURE_NAME, headers={"Metadata": "true"})
        is_name = reply.status == 200 and re.fullmatch(r"[\w.-]+", reply.text)
        return cls(endpoint, reply.text) if is_name else None

    def read(self) -> Notice | None:
        """Return the eviction or deletion of this machine, or ``None``."""
        reply = self._endpoint.request(AZURE_EVENTS, headers={"Metadata": "true"}, timeout_s=self._timeout_s)
        self._timeout_s = REQUEST_S
        for event in _parsed(_Events, _text(reply, AZURE_EVENTS), self.cloud).events:
            if event.kind in AZURE_ENDINGS and self._name in [name.casefold() for name in event.resources]:
                deadline = None if event.not_before is None else event.not_before.timestamp()
                return Notice(self.cloud, event.kind.lower(), deadline, f"Azure has scheduled a {event.kind} event")
        return None


def _text(reply: Reply, path: str) -> str:
    if reply.status != 200:
        raise ClusterError(f"the metadata service must answer {path} with 200, got {reply.status}.")
    return reply.text


def _parsed(model: type[_Model], text: str, cloud: str) -> _Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ClusterError(f"the notice of {cloud} must have its documented form, got {text[:80]!r}.") from error
