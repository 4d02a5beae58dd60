"""Records in the store: read with limits, and refused by name where they are damaged."""

from typing import TYPE_CHECKING

from cluster.config import checked_name
from cluster.errors import IntegrityError
from cluster.s3.stored_json import MOST_BYTES, MOST_VALUES, Listing, M, listing, parse_model

if TYPE_CHECKING:
    from cluster.s3.store import Store


def named_folders(store: "Store", prefix: str) -> Listing[str]:
    """Return the names directly under a prefix of the store, and those that no command could take."""

    def checked(name: str) -> str:
        try:
            return checked_name(name)
        except ValueError as error:
            raise IntegrityError(f"{prefix}/{name} {error}.") from None

    return listing(store.folders(prefix), checked)


def read_model(
    store: "Store", key: str, kind: type[M], *, what: str, cure: str = "", most_values: int = MOST_VALUES
) -> M:
    """Return an object of the store as a record.

    Args:
        store: where it is.
        key: of the object.
        kind: the record that it must be.
        what: what to call such a record, with its article.
        cure: a sentence that follows the message.
        most_values: how many elements its lists may have together.

    Raises:
        NotFoundError: There is no such object.
        IntegrityError: It is too large, no JSON, or another record.
    """
    body = store.read(key, most_bytes=MOST_BYTES)
    return parse_model(kind, body, where=key, what=what, cure=cure, most_values=most_values)
