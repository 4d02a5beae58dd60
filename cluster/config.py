"""Settings of the places where work and bytes live. Imports pydantic only."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")


def checked_name(name: str) -> str:
    """Return ``name`` if it may become part of an object key; raise ``ValueError`` otherwise."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise ValueError(
            f"must be 1 to 63 of a-z, 0-9, '.', '_', '-', begin with a letter or digit, without '..', got {name!r}"
        )
    return name


Name = Annotated[str, AfterValidator(checked_name)]


class StoreSettings(BaseModel):
    """Where the store is and how to reach it; never a key, so it may travel to workers and into records.

    Each process resolves its own credentials through boto3's chain: the environment, the profile, the
    credentials file or the machine's role.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    """``s3://BUCKET`` or ``s3://BUCKET/PREFIX``."""
    endpoint_url: str | None = None
    """Address of an S3-compatible server; ``None`` means AWS."""
    region: str | None = None
    profile: str | None = None
    """Profile in the credentials file; ``None`` means boto3's default chain."""
    credentials_file: str | None = None
    """Path of an AWS credentials file that every node can read (the local cluster writes one)."""
