"""Objects that are written once, with the SHA-256 of their content: finished cells of a sweep, trials of a search."""

import hashlib
import json
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from pydantic import BaseModel

from cluster.errors import IntegrityError, PreconditionError
from cluster.s3.store import Store, all_at_once
from cluster.s3.stored_json import MOST_BYTES, parse_json

M = TypeVar("M", bound=BaseModel)

_READ: WeakKeyDictionary[Store, dict[tuple[str, str, type[BaseModel]], Any]] = WeakKeyDictionary()
"""What has been read of each store, by key, etag and model: who follows a sweep looks at all of its cells again."""


def append(store: Store, key: str, content: BaseModel, *, kind: str) -> None:
    """Write an object. One that is there already, and as it was written, stays: the first result counts.

    Args:
        store: where to.
        key: of the object.
        content: what it holds.
        kind: its name within the object.
    """
    body = sealed(content, kind=kind)
    try:
        store.write(key, body, only_if_absent=True)
    except PreconditionError:
        if _read(store, key, type(content), kind) is None:
            store.write(key, body)


def sealed(content: BaseModel, *, kind: str) -> bytes:
    """The bytes of an object."""
    values = json.loads(content.model_dump_json())
    return json.dumps({"sha256": _sha256(values), kind: values}).encode()


def unsealed(body: bytes, model: type[M], *, kind: str) -> M | None:
    """The content of an object; ``None`` if it is not as it was written."""
    try:
        found = parse_json(body, where=kind)
        return model.model_validate(found[kind]) if found["sha256"] == _sha256(found[kind]) else None
    except (IntegrityError, ValueError, KeyError, TypeError):  # a ValidationError is a ValueError
        return None


def read_all(store: Store, folder: str, model: type[M], *, kind: str) -> dict[str, M | None]:
    """The contents of all objects of a folder by their keys; ``None`` for one that is not as it was written.

    An object that this process has read is read again only if it has changed.
    """
    known = _READ.setdefault(store, {})
    found = {info.key: (info.key, info.etag, model) for info in store.list(folder)}
    new = [key for key in found if found[key] not in known]
    for key, content in zip(new, all_at_once(lambda key: _read(store, key, model, kind), new), strict=True):
        known[found[key]] = content
    return {key: known[identity] for key, identity in found.items()}


def _read(store: Store, key: str, model: type[M], kind: str) -> M | None:
    try:
        body = store.read(key, most_bytes=MOST_BYTES)
    except IntegrityError:
        return None
    return unsealed(body, model, kind=kind)


def _sha256(values: Any) -> str:
    """Return the SHA-256 of JSON in its one shortest form, so that fields which a later release adds change nothing."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
