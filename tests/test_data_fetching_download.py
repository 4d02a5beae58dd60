"""Sources from elsewhere are whole and verified, or a clear error, whatever a server or an archive does."""

import errno
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fake_store import MemoryStore
from ports import free_port

from cluster.config import StoreSettings
from cluster.errors import (
    ConfigError,
    DiskFullError,
    IntegrityError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from cluster.machine import disk
from cluster.s3.retries import RetryPolicy
from cluster.s3.store import Store
from orchestrator.data.fetching import download as fetching_download
from orchestrator.data.fetching import mirror as fetching_mirror
from orchestrator.data.fetching.archives import extract
from orchestrator.data.fetching.download import local_copy
from orchestrator.data.fetching.http import fetch
from orchestrator.data.fetching.mirror import mirror
from tests.web_server import Quiet, listening

QUICK = RetryPolicy(total_s=2.0, connect_timeout_s=1.0, read_timeout_s=1.0, first_pause_s=0.001, longest_pause_s=0.01)
BODY = bytes(range(256)) * 1000
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
ONE_ANSWER = RetryPolicy(total_s=0.0, connect_timeout_s=1.0, read_timeout_s=1.0, first_pause_s=0.001)


@dataclass
class WebServer:
    """Serves `files` by path; `faults` are used up, one per request, before it does."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Callable[["Handler"], None]] = field(default_factory=list)
    ranges: bool = True
    content_type: str = "application/octet-stream"
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of each request."""
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


class Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: WebServer

    def do_GET(self) -> None:
        self.web.requests.append((self.path, self.headers.get("Range")))
        if self.web.faults:
            self.web.faults.pop(0)(self)
        else:
            self.serve()

    def serve(self, *, keep: int | None = None) -> None:
        """Send the file, or the range asked for; `keep` breaks off after so many bytes."""
        body = self.web.files.get(self.path[1:].partition("?")[0])
        if body is None:
            self.answer(404)
            return
        etag, start = f'"{hashlib.md5(body).hexdigest()}"', 0
        if (asked := self.headers.get("Range")) and self.web.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.answer(416, {"Content-Range": f"bytes */{len(body)}"})
                return
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self.answer(206 if start else 200, {"ETag": etag, **span}, body[start:], keep=keep)

    def answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", *, keep: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": self.web.content_type, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:keep])
        self.close_connection = keep is not None


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer(files={"data.bin": BODY})
    with listening(type("ThisHandler", (Handler,), {"web": server})) as httpd:
        server.address = f"http://127.0.0.1:{httpd.server_port}"
        yield server


@pytest.fixture(autouse=True)
def own_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is left from another test; the local store is still found in the session's home."""
    folder = tmp_path / "downloads"
    monkeypatch.setattr(fetching_download, "downloads", lambda: folder)
    return folder


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(code)


def cut(keep: int) -> Callable[[Handler], None]:
    return lambda handler: handler.serve(keep=keep)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# ---- over HTTP


def test_a_file_is_fetched_once_and_kept(web: WebServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None, str]] = []
    for _ in range(2):
        path = fetch(
            web.url("data.bin"), to=tmp_path / "a/data.bin", checksum=SHA256, progress=lambda *x: seen.append(x)
        )
        assert path.read_bytes() == BODY
    assert len(web.requests) == 1
    assert seen[-1] == (len(BODY), len(BODY), "data.bin")
    assert files_in(path.parent) == ["data.bin"]


def test_a_cut_body_is_resumed_where_it_broke(web: WebServer, tmp_path: Path) -> None:
    web.faults = [cut(1000), cut(5000)]
    assert fetch(web.url("data.bin"), to=tmp_path / "x", policy=QUICK).read_bytes() == BODY
    assert [span for _, span in web.requests] == [None, "bytes=1000-", "bytes=6000-"]


def test_a_later_process_resumes_if_a_checksum_can_tell(web: WebServer, tmp_path: Path) -> None:
    web.faults = [cut(1000)]
    with pytest.raises(StoreUnavailableError, match=r"must answer within 0 s, got .*what has come is kept"):
        fetch(web.url("data.bin"), to=tmp_path / "x", checksum=SHA256, policy=ONE_ANSWER)
    assert (tmp_path / ".x.part").read_bytes() == BODY[:1000]
    assert fetch(web.url("data.bin"), to=tmp_path / "x", checksum=SHA256).read_bytes() == BODY
    assert web.requests[-1] == ("/data.bin", "bytes=1000-")


def test_a_later_process_begins_anew_without_a_checksum(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / ".x.part").write_bytes(b"of who knows which file")
    assert fetch(web.url("data.bin"), to=tmp_path / "x").read_bytes() == BODY
    assert web.requests == [("/data.bin", None)]


@pytest.mark.parametrize("left", [b"of another version", BODY, BODY + b"longer"], ids=["other", "whole", "longer"])
def test_what_a_former_process_left_is_used_only_if_it_fits(web: WebServer, tmp_path: Path, left: bytes) -> None:
    (tmp_path / ".x.part").write_bytes(left)
    assert fetch(web.url("data.bin"), to=tmp_path / "x", checksum=SHA256, policy=QUICK).read_bytes() == BODY


def test_a_file_that_changes_in_between_is_not_mixed(web: WebServer, tmp_path: Path) -> None:
    def change(handler: Handler) -> None:
        handler.serve(keep=1000)
        web.files["data.bin"] = BODY[::-1]

    web.faults = [change]
    assert fetch(web.url("data.bin"), to=tmp_path / "x", policy=QUICK).read_bytes() == BODY[::-1]


def test_a_server_without_ranges_sends_the_whole_again(web: WebServer, tmp_path: Path) -> None:
    web.ranges, web.faults = False, [cut(1000)]
    assert fetch(web.url("data.bin"), to=tmp_path / "x", checksum=SHA256, policy=QUICK).read_bytes() == BODY


def test_a_busy_server_is_asked_again(web: WebServer, tmp_path: Path) -> None:
    web.faults = [status(503), status(503), status(429)]
    assert fetch(web.url("data.bin"), to=tmp_path / "x", policy=QUICK).read_bytes() == BODY


def test_wrong_bytes_are_deleted_and_named(web: WebServer, tmp_path: Path) -> None:
    web.files["data.bin"] = BODY[:-1] + b"!"
    found = hashlib.sha256(web.files["data.bin"]).hexdigest()
    with pytest.raises(IntegrityError, match=rf"{web.url('data.bin')} must have SHA256 {SHA256[7:]}, got {found}"):
        fetch(web.url("data.bin"), to=tmp_path / "x", checksum=SHA256)
    assert files_in(tmp_path) == []


def test_a_damaged_copy_is_downloaded_again(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(BODY[:-1])
    assert fetch(web.url("data.bin"), to=tmp_path / "x", checksum=SHA256).read_bytes() == BODY


def test_md5_is_a_checksum_too(web: WebServer, tmp_path: Path) -> None:
    fetch(web.url("data.bin"), to=tmp_path / "x", checksum="md5:" + hashlib.md5(BODY).hexdigest())
    with pytest.raises(IntegrityError, match="must have MD5"):
        fetch(web.url("data.bin"), to=tmp_path / "y", checksum="md5:" + "0" * 32)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (404, ConfigError, "must exist, got HTTP 404"),
        (403, StoreAccessError, "must be readable without a login, got HTTP 403"),
        (400, StoreError, "must be a file to download, got HTTP 400"),
    ],
)
def test_a_refusal_is_not_tried_again(
    web: WebServer, tmp_path: Path, code: int, error: type[Exception], message: str
) -> None:
    web.faults = [status(code)]
    with pytest.raises(error, match=message):
        fetch(web.url("data.bin"), to=tmp_path / "x", policy=QUICK)
    assert len(web.requests) == 1


def test_a_web_page_is_not_taken_for_data(web: WebServer, tmp_path: Path) -> None:
    web.files["login"], web.content_type = b"<html>Log in</html>", "text/html; charset=utf-8"
    web.faults = [lambda handler: handler.answer(302, {"Location": "/login"})]
    with pytest.raises(ConfigError, match=rf"must be a file, got a web page from {web.url('login')}"):
        fetch(web.url("data.bin"), to=tmp_path / "x")
    assert files_in(tmp_path) == []


def test_mirrors_are_tried_in_order(web: WebServer, tmp_path: Path) -> None:
    web.files |= {"wrong.bin": b"wrong", "data.bin": BODY}
    urls = [web.url("gone.bin"), web.url("wrong.bin"), web.url("data.bin")]
    assert fetch(urls, to=tmp_path / "x", checksum=SHA256).read_bytes() == BODY
    with pytest.raises(ConfigError, match=r"a\.bin must exist.* .*b\.bin must exist"):
        fetch([web.url("a.bin"), web.url("b.bin")], to=tmp_path / "y")


def test_a_server_that_does_not_answer_ends_in_time(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=r"must answer within 0 s.*HTTPS_PROXY"):
        fetch(f"http://127.0.0.1:{free_port()}/x", to=tmp_path / "x", policy=ONE_ANSWER)


def test_a_full_disk_is_said_before_the_download(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000, "total": 2**31})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        DiskFullError, match=rf"must have room for {len(BODY)} bytes, got 1000 bytes free of 2.0 GiB at"
    ):
        fetch(web.url("data.bin"), to=tmp_path / "x")


def test_a_disk_that_fills_up_on_the_way_is_named(web: WebServer, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        DiskFullError, match=r"disk of .*part must have room for what is to be written, got a full one \("
    ):
        fetch(web.url("data.bin"), to=tmp_path / "x", progress=full)


def test_plain_http_from_elsewhere_needs_a_checksum(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http://example\.org/a\.csv\?… must have a checksum"):
        fetch("http://user:secret@example.org/a.csv?token=secret", to=tmp_path / "x")


FETCH = """
import sys, pathlib
from orchestrator.data.fetching.http import fetch
print(len(fetch(sys.argv[1], to=pathlib.Path(sys.argv[2]), checksum=sys.argv[3]).read_bytes()))
"""


def test_processes_that_fetch_the_same_file_share_one_download(web: WebServer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCH, web.url("data.bin"), str(tmp_path / "x"), SHA256]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == [str(len(BODY))] * 3
    assert len(web.requests) == 1


# ---- sources


def test_a_url_becomes_a_file_with_its_checksum_in_the_source(web: WebServer) -> None:
    web.files["My%20Data.csv"] = b"date,a\n"
    copy = local_copy(web.url("My%20Data.csv") + "?signature=secret")
    assert Path(copy.source).read_bytes() == b"date,a\n"
    assert copy.name == "my-data"
    assert copy.uri == web.url("My%20Data.csv") + "?…#sha256=" + hashlib.sha256(b"date,a\n").hexdigest()
    web.files.clear()
    assert local_copy(web.url("My%20Data.csv") + "?signature=secret") == copy  # without the network


def test_a_checksum_follows_the_url(web: WebServer) -> None:
    assert Path(local_copy(web.url("data.bin") + "#" + SHA256.replace(":", "=")).source).read_bytes() == BODY
    with pytest.raises(IntegrityError, match="must have SHA256 0000"):
        local_copy(web.url("data.bin") + "#sha256=" + "0" * 64)
    with pytest.raises(ConfigError, match=r"must be sha256=HEX or md5=HEX, got sha256= and 2 characters"):
        local_copy(web.url("data.bin") + "#sha256=12")


def test_an_archive_behind_a_url_is_unpacked(web: WebServer) -> None:
    web.files["photos.zip"] = zipped({"photos/cat/1.png": b"1", "photos/dog/2.png": b"2", "__MACOSX/junk": b""})
    copy = local_copy(web.url("photos.zip"))
    assert copy.name == "photos"
    assert files_in(Path(copy.source)) == ["cat", "dog"]


def test_a_local_archive_is_unpacked_once(tmp_path: Path) -> None:
    (tmp_path / "Series.csv.gz").write_bytes(gzip.compress(b"date,a\n"))
    copy = local_copy(str(tmp_path / "Series.csv.gz"))
    assert (Path(copy.source).read_bytes(), copy.name) == (b"date,a\n", "series")
    assert local_copy(str(tmp_path / "Series.csv.gz")) == copy


@pytest.mark.parametrize("source", ["sklearn:digits", "./folder", "data.csv"])
def test_what_is_here_already_is_left_alone(source: str) -> None:
    assert local_copy(source).source == source


def test_a_name_that_is_also_a_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(ConfigError, match=r"source must be one thing, got 'cifar10'.*\./cifar10"):
        local_copy("cifar10")
    assert local_copy("./cifar10").source == "./cifar10"


# ---- archives


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def tarred(*members: tarfile.TarInfo, content: bytes = b"content") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for member in members:
            if member.isfile():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def linked_zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return data.getvalue()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "parent.tar.gz": (tarred(member("../../evil")), r"relative paths without '\.\.', got '\.\./\.\./evil'"),
    "absolute.tar.gz": (tarred(member("/etc/evil")), "relative paths"),
    "link.tar.gz": (tarred(member("x", tarfile.SYMTYPE, "../../etc/passwd")), "relative paths"),
    "absolute-link.tar.gz": (tarred(member("x", tarfile.SYMTYPE, "/etc/passwd")), "relative paths"),
    "hard-link.tar.gz": (tarred(member("x", tarfile.LNKTYPE, "../../etc/passwd")), "relative paths"),
    "device.tar.gz": (tarred(member("null", tarfile.CHRTYPE)), "whole archive, got 'null' is a special file"),
    "parent.zip": (zipped({"../evil": b""}), "relative paths"),
    "backslash.zip": (zipped({"a\\..\\..\\evil": b""}), "relative paths"),
    "drive.zip": (zipped({"C:/evil": b""}), "relative paths"),
    "link.zip": (linked_zip(), "no links, got 'link'"),
    "bomb.zip": (zipped({"zeros": bytes(100 * 2**20)}), "unpack to at most"),
    "bomb.tar.gz": (tarred(member("zeros"), content=bytes(100 * 2**20)), "unpack to at most"),
    "bomb.csv.gz": (gzip.compress(bytes(100 * 2**20)), "unpack to at most"),
    "cut.zip": (zipped({"a": BODY})[:500], "whole archive"),
    "cut.tar.gz": (tarred(member("a"), content=os.urandom(9000))[:5000], "whole archive"),
    "damaged.zip": (flipped(zipped({"a": os.urandom(9000)})), "whole archive"),
    "page.tar.gz": (b"<html>", "whole archive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_harmful_or_damaged_archive_leaves_nothing(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        extract(tmp_path / name, to=tmp_path / "in" / "here")
    assert files_in(tmp_path / "in") == []
    assert files_in(tmp_path) == [name, "in"] if name < "in" else ["in", name]


def test_links_within_an_archive_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tarred(member("x"), member("y", tarfile.SYMTYPE, "x")))
    folder = extract(tmp_path / "a.tar.gz", to=tmp_path / "here")
    assert (folder / "y").read_bytes() == b"content"


def test_what_a_killed_process_left_half_unpacked_is_no_result(tmp_path: Path) -> None:
    (tmp_path / ".here.part").mkdir()
    (tmp_path / ".here.part" / "half").touch()
    (tmp_path / "a.tar.gz").write_bytes(tarred(member("x")))
    assert files_in(extract(tmp_path / "a.tar.gz", to=tmp_path / "here")) == ["x"]
    assert files_in(tmp_path) == ["a.tar.gz", "here"]


# ---- buckets


@pytest.mark.store
def test_a_prefix_is_copied_and_only_changes_come_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read_range = Store.read_range

    def noted_read_range(self: Store, key: str, **span: int) -> bytes:
        reads.append(key)
        return read_range(self, key, **span)

    monkeypatch.setattr(Store, "read_range", noted_read_range)
    monkeypatch.setattr(fetching_mirror, "_RANGE_BYTES", 100_000)
    for key, data in {"photos/cat/1.png": BODY, "photos/dog/2.png": b"2", "photos/empty": b"", "other/x": b"x"}.items():
        store.write(key, data)
    source = f"{store.settings.url}/photos"

    copy = local_copy(source)
    root = Path(copy.source)
    assert (copy.uri, copy.name, root.name) == (source, "photos", "photos")
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == [
        "cat/1.png",
        "dog/2.png",
        "empty",
    ]
    assert (root / "cat/1.png").read_bytes() == BODY

    reads.clear()
    store.write("photos/dog/2.png", b"3")
    store.delete(["photos/cat/1.png"])
    assert local_copy(source + "/") == copy
    assert reads == ["dog/2.png"]
    assert (root / "dog/2.png").read_bytes() == b"3"
    assert not (root / "cat").exists()


@pytest.mark.store
def test_one_object_is_a_source_too(store: Store) -> None:
    store.write("in/series.csv", b"date,a\n")
    store.write("in/series.csv.old", b"")
    store.write("in/photos.zip", zipped({"cat/1.png": b"1", "dog/2.png": b"2"}))
    copy = local_copy(f"{store.settings.url}/in/series.csv")
    assert (Path(copy.source).read_bytes(), copy.name) == (b"date,a\n", "series")
    assert files_in(Path(local_copy(f"{store.settings.url}/in/photos.zip").source)) == ["cat", "dog"]


@pytest.mark.store
def test_an_empty_prefix_is_not_found(store: Store) -> None:
    with pytest.raises(ConfigError, match="must hold objects, got none"):
        local_copy(f"{store.settings.url}/nothing")


@dataclass
class NamedStore(MemoryStore):
    settings: StoreSettings = field(default_factory=lambda: StoreSettings(url="s3://memory"))


def mirrored(store: NamedStore, folder: Path) -> Path:
    mirror(store, store.list, to=folder / "files", record=folder / "etags.json")  # type: ignore[arg-type]
    return folder / "files"


def test_a_flipped_bit_is_fetched_again(tmp_path: Path) -> None:
    flips = [b"dbta"]
    store = NamedStore({"a": b"data"}, damage=lambda _, data: flips.pop() if flips else data)
    assert (mirrored(store, tmp_path) / "a").read_bytes() == b"data"
    assert not flips


def test_an_etag_that_is_no_md5_is_believed_after_two_equal_copies(tmp_path: Path) -> None:
    store = NamedStore({"a": b"encrypted"}, damage=lambda _, data: b"decrypted")
    assert (mirrored(store, tmp_path) / "a").read_bytes() == b"decrypted"
    numbers = iter(range(9))
    store = NamedStore({"a": b"data"}, damage=lambda _, data: b"%04d" % next(numbers))
    with pytest.raises(IntegrityError, match="a of s3://memory must come the same twice"):
        mirrored(store, tmp_path / "other")


@pytest.mark.parametrize("key", ["../a", "a/../../b", "a//b", "/a", "a\\b", "x" * 300])
def test_a_key_that_is_no_path_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="must have a key that can be a file's path"):
        mirrored(NamedStore({key: b""}), tmp_path)


def test_a_key_that_is_both_a_file_and_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 'a'"):
        mirrored(NamedStore({"a": b"", "a/b": b""}), tmp_path)


def test_a_prefix_that_changes_meanwhile_is_copied_again(tmp_path: Path) -> None:
    store = NamedStore({"a": b"old"})
    changes = [b"new"]

    def change(operation: str, key: str) -> None:
        if operation == "read_range" and changes:
            store.objects |= {"a": changes.pop(), "b": b"more"}

    store.before = change
    folder = mirrored(store, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"new", "b": b"more"}


def test_a_prefix_that_never_rests_is_given_up(tmp_path: Path) -> None:
    store = NamedStore({"0": b""})
    store.before = lambda operation, key: operation == "list" and store.objects.update({str(len(store.objects)): b""})
    with pytest.raises(StoreError, match="must stay the same while it is copied"):
        mirrored(store, tmp_path)


def test_a_copy_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    store = NamedStore({"a": b"1", "b": b"2"})

    def fail(operation: str, key: str) -> None:
        if (operation, key) == ("read_range", "b"):
            raise StoreUnavailableError("no answer")

    store.before = fail
    with pytest.raises(StoreUnavailableError):
        mirrored(store, tmp_path)
    store.before, store.log = lambda operation, key: None, []
    mirrored(store, tmp_path)
    assert [key for operation, key in store.log if operation == "read_range"] == ["b"]


def test_a_file_that_became_a_folder_and_back_is_followed(tmp_path: Path) -> None:
    for objects in ({"a": b"1"}, {"a/b/c": b"2", "d": b"3"}, {"a": b"4"}):
        folder = mirrored(NamedStore(dict(objects)), tmp_path)
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        assert found == objects
