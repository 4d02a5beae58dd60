"""Which store is meant: the one that is named, or the local one."""

import os

from cluster.config import StoreSettings
from cluster.errors import ConfigError
from cluster.machine.state import read_state
from cluster.s3.store import Store, parse_url

STORE_VARIABLE = "ORCHESTRATOR_STORE"


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
