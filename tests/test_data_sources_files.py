"""Where the files of a source are: folders that consoles draw in buckets, and keys and servers of a source's own."""

import pickle

import pytest

from cluster.config import StoreSettings
from cluster.errors import ConfigError, StoreAccessError
from cluster.s3.store import Store
from orchestrator.data.fetching.download import local_copy
from orchestrator.data.sources.files import Access, Bucket, open_files, open_source, reading_with
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.located import SourceFile, split_files
from tests.fake_store import MemoryStore

TABLE = b"a,label\n" + b"".join(b"%d,%d\n" % (i, i % 2) for i in range(40))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[StoreSettings]:
    """The settings of every bucket that was opened; each holds one table and what a console left."""
    found: list[StoreSettings] = []

    def open_bucket(settings: StoreSettings) -> MemoryStore:
        found.append(settings)
        store = MemoryStore(objects={"": b"", "empty/": b"", "table.csv": TABLE})
        store.settings = settings  # type: ignore[attr-defined]
        return store

    monkeypatch.setattr("orchestrator.data.sources.files.Store", open_bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example.org")
    monkeypatch.setenv("AWS_PROFILE", "store")
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE")
    return found


def test_the_empty_objects_of_a_console_are_no_files(opened: list[StoreSettings]) -> None:
    prepared = prepare("s3://bucket/data")
    assert prepared.source.format == "table"
    assert sum(part.rows for part in prepared.splits.values()) == 40
    assert list(Bucket(StoreSettings(url="s3://bucket/data")).sizes()) == ["table.csv"]


def test_an_object_with_bytes_and_the_name_of_a_folder_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {"folder/": b"bytes", "table.csv": TABLE}
    monkeypatch.setattr("orchestrator.data.sources.files.Store", lambda _: MemoryStore(objects=objects))
    with pytest.raises(ConfigError, match=r"s3://bucket/data must hold files with plain names, got 'folder/'"):
        prepare("s3://bucket/data")


@pytest.mark.parametrize("source", ["s3://bucket/a//b", "s3://bucket//a", "s3://My_Bucket/a", "s3://bucket/../a"])
def test_a_source_that_is_no_address_is_not_called_a_wrong_store(source: str) -> None:
    with pytest.raises(ConfigError, match=r"source must be s3://BUCKET or s3://BUCKET/PREFIX, without '//' or '\.\.'"):
        open_files(source)


def test_a_source_has_the_store_s_keys_and_server_unless_it_has_its_own(opened: list[StoreSettings]) -> None:
    store = StoreSettings(url="s3://bucket/data", endpoint_url="https://store.example.org", profile="store")
    assert isinstance(found := open_files("s3://bucket/data"), Bucket) and found.settings == store
    with reading_with(Access(profile="team", endpoint_url="https://source.example.org")):
        files = split_files("s3://bucket/data", suffixes=(".csv",))
    (file,) = files.values()
    team = StoreSettings(url="s3://bucket/data", profile="team", credentials_file="~/.aws/credentials")
    own = team.model_copy(update={"endpoint_url": "https://source.example.org"})
    assert isinstance(file.files, Bucket) and file.files.settings == own
    assert pickle.loads(pickle.dumps(file.files)) == file.files, "a worker reads it with the same"
    assert SourceFile(file.files, "table.csv").read() == TABLE
    assert opened[-1] == own

    with reading_with(Access(endpoint_url="https://source.example.org")):
        open_source("s3://bucket/data")
    assert opened[-1] == store.model_copy(update={"endpoint_url": "https://source.example.org"})
    with reading_with(Access(profile="team")):
        open_source("s3://bucket/data")
    assert opened[-1] == team
    assert isinstance(found := open_files("s3://bucket/data"), Bucket) and found.settings == store


def test_a_server_of_the_source_s_own_is_reached_by_https_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Access(endpoint_url="http://minio.lan:9000", profile="team")
    with (
        reading_with(plain),
        pytest.raises(ConfigError, match=r"--source-endpoint must use https unless .*PLAIN_HTTP=1"),
    ):
        open_source("s3://bucket/data")
    monkeypatch.setenv("ORCHESTRATOR_STORE_PLAIN_HTTP", "1")
    with reading_with(plain):
        assert open_source("s3://bucket/data").settings.endpoint_url == "http://minio.lan:9000"


@pytest.mark.store
def test_a_folder_that_a_console_made_in_a_real_bucket_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"{store.settings.url}/data"
    for key, data in {"data/": b"", "data/empty/": b"", "data/table.csv": TABLE}.items():
        store.write(key, data)
    assert prepare(source).splits["train"].rows == 32
    assert local_copy(f"{source}/table.csv").uri == f"{source}/table.csv"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(store.settings.credentials_file))
    profile = Access(profile=store.settings.profile, endpoint_url=store.settings.endpoint_url)
    with reading_with(profile):
        assert prepare(source).splits["train"].rows == 32
    with (
        reading_with(Access(profile="nobody", endpoint_url=store.settings.endpoint_url)),
        pytest.raises(StoreAccessError),
    ):
        prepare(source)
