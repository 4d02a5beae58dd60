"""The S3 client of this process: credentials, addresses, and what may travel unencrypted."""

import ipaddress
import logging
import os
from datetime import datetime
from functools import cache
from typing import Any, cast
from urllib.parse import urlsplit

import boto3
import botocore.loaders
import botocore.session
import botocore.utils
from botocore.config import Config

from cluster.config import StoreSettings
from cluster.errors import ConfigError
from cluster.machine.proxies import spare_loopback
from cluster.s3.retries import RetryPolicy

PLAIN_HTTP_VARIABLE = "ORCHESTRATOR_STORE_PLAIN_HTTP"

log = logging.getLogger(__name__)


class Connection:
    """The client of one process."""

    def __init__(self, settings: StoreSettings, policy: RetryPolicy):
        spare_loopback()
        self.pid = os.getpid()
        self.s3 = open_session(settings).client(
            "s3",
            endpoint_url=settings.endpoint_url,
            config=Config(
                connect_timeout=policy.connect_timeout_s,
                read_timeout=policy.read_timeout_s,
                retries={"total_max_attempts": 1, "mode": "standard"},  # the retries are ours: see Store._call
                max_pool_connections=32,
                tcp_keepalive=True,
                proxies={} if _is_here(settings.endpoint_url) else None,  # `no_proxy` knows 127.0.0.1 alone
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


def open_session(settings: StoreSettings) -> boto3.Session:
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
    """Parse the time of an object in a listing, which botocore's own parser takes five times as long for."""
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return cast(datetime, botocore.utils.parse_timestamp(text))


def _default_region(core: Any, settings: StoreSettings) -> str | None:
    """S3-compatible servers rarely care for a region, but the signature needs one."""
    return core.get_config_variable("region") or ("us-east-1" if settings.endpoint_url else None)


def check_endpoint(endpoint_url: str | None, *, name: str = "the store's endpoint") -> None:
    """Refuse an endpoint that would send data in the clear over a network; ``name`` is what a message calls it.

    Raises:
        ConfigError: It is not http(s), or plain http to another machine and ``PLAIN_HTTP_VARIABLE`` is not 1.
    """
    if endpoint_url is None:
        return
    parts = urlsplit(endpoint_url)
    shown = f"{parts.scheme}://{parts.hostname}"  # not the whole: it may hold a password
    more = parts.username or parts.query or parts.fragment  # a password, or the signature of a single request
    if parts.scheme not in ("http", "https") or not parts.hostname or more:
        raise ConfigError(f"{name} must be http(s)://HOST[:PORT], got {shown}.")
    if not is_in_the_clear(endpoint_url):
        return
    if os.environ.get(PLAIN_HTTP_VARIABLE) != "1":
        raise ConfigError(
            f"{name} must use https unless it is on this machine, got {shown}. Put TLS before the "
            f"server, or tunnel it to 127.0.0.1. Where you trust the network, set {PLAIN_HTTP_VARIABLE}=1: "
            f"{_IN_THE_CLEAR}."
        )
    _warn_once(shown)


_IN_THE_CLEAR = (
    "then whoever is on the way can read and change all data, models and names, and read the access key's id, though "
    "not its secret"
)


def is_in_the_clear(endpoint_url: str) -> bool:
    """Whether what is sent to this address crosses a network unencrypted."""
    parts = urlsplit(endpoint_url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


@cache
def _warn_once(shown: str) -> None:
    log.warning("the store at %s is reached by plain http, as %s=1 says: %s", shown, PLAIN_HTTP_VARIABLE, _IN_THE_CLEAR)


def _is_here(endpoint_url: str | None) -> bool:
    return endpoint_url is not None and is_loopback(urlsplit(endpoint_url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether the host name or address is this machine and nothing else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
