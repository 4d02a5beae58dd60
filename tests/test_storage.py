"""The store against a real S3 server, and against small servers that fail in the ways S3 does."""

import pytest

from cluster.errors import NotFoundError
from cluster.storage import Store

pytestmark = pytest.mark.store


def test_what_is_written_is_read_back(store: Store) -> None:
    store.write("a/b", b"hello")
    assert store.read("a/b") == b"hello"


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(NotFoundError, match="must exist to read a/b, got none"):
        store.read("a/b")
