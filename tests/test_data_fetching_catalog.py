"""Official datasets: each is read from files in its official layout, and the pins are those of the real files."""

import gzip
import hashlib
import io
import re
import struct
import tarfile
import wave
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from cluster.config import checked_name
from cluster.errors import IntegrityError
from orchestrator.data.fetching import download as download_module
from orchestrator.data.fetching.archives import extract
from orchestrator.data.fetching.catalog import OFFICIAL, OfficialDataset
from orchestrator.data.fetching.disk import file_digest
from orchestrator.data.fetching.download import official_copy
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import parse_options
from tests.web_server import Quiet, listening

SHARED = Path(__file__).parents[2] / "shared/data"


class Folder(Quiet, SimpleHTTPRequestHandler):
    """Hands out the files of a folder."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a web server serves it."""
    folder = tmp_path / "site"
    folder.mkdir()
    with listening(partial(Folder, directory=str(folder))) as httpd:
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"


@pytest.fixture(autouse=True)
def own_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "downloads"
    monkeypatch.setattr(download_module, "downloads", lambda: folder)
    return folder


def served(dataset: OfficialDataset, files: Mapping[str, bytes], site: tuple[Path, str]) -> OfficialDataset:
    """Return the dataset with small files at local addresses, and their checksums."""
    folder, address = site
    assert files.keys() == {file.name for file in dataset.files}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    local = tuple(
        replace(
            file,
            urls=(address + "moved/" + file.name, address + file.name),
            checksum=file.checksum and "sha256:" + hashlib.sha256(files[file.name]).hexdigest(),
            num_bytes=len(files[file.name]),
        )
        for file in dataset.files
    )
    return replace(dataset, files=local)


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def zipped(files: Mapping[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


# ---- the files, tiny, as their authors lay them out


def cifar10() -> dict[str, bytes]:
    def batch(seed: int) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (10, 3072), np.uint8)
        return b"".join(bytes([label]) + row.tobytes() for label, row in enumerate(pixels))

    names = "airplane automobile bird cat deer dog frog horse ship truck"
    folder = "cifar-10-batches-bin/"
    files = {f"{folder}data_batch_{i}.bin": batch(i) for i in range(1, 6)}
    files |= {f"{folder}test_batch.bin": batch(6), f"{folder}readme.html": b"<html>"}
    return {
        "cifar-10-binary.tar.gz": tar_gz(
            {f"{folder}batches.meta.txt": (names.replace(" ", "\n") + "\n\n").encode(), **files}
        )
    }


def cifar100() -> dict[str, bytes]:
    def batch(seed: int) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (100, 3072), np.uint8)
        return b"".join(bytes([label // 5, label]) + row.tobytes() for label, row in enumerate(pixels))

    folder = "cifar-100-binary/"
    return {
        "cifar-100-binary.tar.gz": tar_gz(
            {
                f"{folder}coarse_label_names.txt": "".join(f"coarse_{i}\n" for i in range(20)).encode(),
                f"{folder}fine_label_names.txt": "".join(f"fine_{i}\n" for i in range(100)).encode(),
                f"{folder}train.bin": batch(1),
                f"{folder}test.bin": batch(2),
            }
        )
    }


def idx() -> dict[str, bytes]:
    files = {}
    for split, rows in {"train": 30, "t10k": 20}.items():
        pixels = np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), np.uint8)
        labels = bytes(row % 10 for row in range(rows))
        images = struct.pack(">IIII", 2051, rows, 28, 28) + pixels.tobytes()
        files[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(images)
        files[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(struct.pack(">II", 2049, rows) + labels)
    return files


RATINGS = [(user, item, 1 + (user * item) % 5, 978_300_000 + user) for user in range(1, 7) for item in range(1, 6)]


def ratings(separator: str, header: str = "") -> str:
    return header + "".join(separator.join(map(str, row)) + "\n" for row in RATINGS)


def movielens() -> dict[str, dict[str, bytes]]:
    return {
        "movielens-100k": {
            "ml-100k.zip": zipped({"ml-100k/u.data": ratings("\t"), "ml-100k/u1.base": "", "ml-100k/README": ""})
        },
        "movielens-1m": {"ml-1m.zip": zipped({"ml-1m/ratings.dat": ratings("::"), "ml-1m/movies.dat": ""})},
        "movielens-10m": {"ml-10m.zip": zipped({"ml-10M100K/ratings.dat": ratings("::")})},
        "movielens-20m": {
            "ml-20m.zip": zipped({"ml-20m/ratings.csv": ratings(",", "userId,movieId,rating,timestamp\n")})
        },
    }


def recordings() -> dict[str, bytes]:
    def sound(seed: int) -> bytes:
        data = io.BytesIO()
        with wave.open(data, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(np.random.default_rng(seed).integers(-999, 999, 400 + seed, np.int16).tobytes())
        return data.getvalue()

    takes = [(digit, speaker, index) for digit in range(10) for speaker in ("ann", "bob") for index in (0, 4, 5, 6)]
    return {f"{d}_{speaker}_{index}.wav": sound(10 * d + index) for d, speaker, index in takes}


def fsdd() -> dict[str, bytes]:
    name = OFFICIAL["fsdd"].files[0].name
    folder = f"free-spoken-digit-dataset-{name.removesuffix('.tar.gz')}/"
    files = {f"{folder}recordings/{take}": data for take, data in recordings().items()}
    return {name: tar_gz({f"{folder}README.md": b"", f"{folder}metadata.py": b"", **files})}


def ett(file: str, *, rows: int, step: timedelta) -> dict[str, bytes]:
    start = datetime(2016, 7, 1)
    lines = [f"{start + i * step},{i % 24}.5,1,2,3,4,5,{i % 7}.25" for i in range(rows)]
    return {f"{file}.csv": "\n".join(["date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT", *lines, ""]).encode()}


FILES: Mapping[str, dict[str, bytes]] = {
    "cifar10": cifar10(),
    "cifar100": cifar100(),
    "mnist": idx(),
    "fashion-mnist": idx(),
    **movielens(),
    "fsdd": fsdd(),
    "etth1": ett("ETTh1", rows=14_420, step=timedelta(hours=1)),
    "etth2": ett("ETTh2", rows=14_420, step=timedelta(hours=1)),
    "ettm1": ett("ETTm1", rows=57_620, step=timedelta(minutes=15)),
    "ettm2": ett("ETTm2", rows=57_620, step=timedelta(minutes=15)),
}
ROWS = {
    "cifar10": {"train": 50, "test": 10},
    "cifar100": {"train": 100, "test": 100},
    "mnist": {"train": 30, "test": 20},
    "fashion-mnist": {"train": 30, "test": 20},
    "fsdd": {"train": 40, "test": 40},
    "etth1": {"train": 8640, "validation": 2880 + 720, "test": 2880 + 720},
    "ettm1": {"train": 34560, "validation": 11520 + 720, "test": 11520 + 720},
}
CLASSES = {"cifar10": "bird", "cifar100": "fine_2", "mnist": "2", "fashion-mnist": "Pullover", "fsdd": "2"}


def content_digest(files: Mapping[str, bytes]) -> str:
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_dataset_is_fetched_unpacked_and_read(name: str, site: tuple[Path, str]) -> None:
    dataset = served(OFFICIAL[name], FILES[name], site)
    if dataset.content_sha256:
        dataset = replace(dataset, content_sha256=content_digest(recordings()))
    copy = official_copy(dataset)
    assert (copy.name, copy.format, copy.licence) == (name, dataset.format, dataset.licence)
    prepared = prepare(copy.source, format=copy.format, options=parse_options(copy.options))
    rows = {split: part.rows for split, part in prepared.splits.items()}
    assert rows == ROWS.get(name, rows)
    if dataset.format == "ratings":
        assert sum(rows.values()) == len(RATINGS)
    if name in CLASSES:
        assert prepared.target.kind == "class"
        assert prepared.target.classes[2] == CLASSES[name]


def test_an_official_dataset_needs_no_network_the_second_time(site: tuple[Path, str]) -> None:
    dataset = served(OFFICIAL["mnist"], FILES["mnist"], site)
    copy = official_copy(dataset)
    for path in site[0].iterdir():
        path.unlink()
    assert official_copy(dataset) == copy


def test_recordings_that_differ_are_deleted(site: tuple[Path, str], own_downloads: Path) -> None:
    dataset = served(OFFICIAL["fsdd"], FILES["fsdd"], site)
    with pytest.raises(IntegrityError, match=r"files of recordings must have SHA-256 1801eae0.* together"):
        official_copy(dataset)
    assert not [path for path in own_downloads.rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_an_archive_of_another_layout_is_named(site: tuple[Path, str]) -> None:
    files = {"ml-100k.zip": zipped({"else/u.data": ratings("\t")})}
    with pytest.raises(IntegrityError, match=r"movielens-100k must hold ml-100k/u\.data, got no such path"):
        official_copy(served(OFFICIAL["movielens-100k"], files, site))


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_entry_is_complete(name: str) -> None:
    dataset = OFFICIAL[name]
    assert checked_name(name) == dataset.name
    assert dataset.licence and dataset.citation and dataset.title and dataset.home_page
    parse_options(dataset.options)
    for file in dataset.files:
        assert all(url.startswith(("https://", "http://")) for url in file.urls)
        assert len({url.rpartition("/")[2] for url in file.urls}) == 1
        if dataset.content_sha256 is None:
            assert file.checksum is not None
            assert re.fullmatch("sha256:[0-9a-f]{64}", file.checksum)
            assert file.num_bytes


def test_the_pin_of_etth1_is_that_of_the_real_file() -> None:
    path = SHARED / "etth1/ETTh1.csv"
    if not path.exists():
        pytest.skip("shared/data/etth1 is not at hand")
    (file,) = OFFICIAL["etth1"].files
    assert (file.checksum, file.num_bytes) == (f"sha256:{file_digest(path)}", path.stat().st_size)


def test_the_pin_of_the_spoken_digits_is_that_of_the_real_recordings(tmp_path: Path) -> None:
    archive = SHARED / "fsdd.tar.gz"
    if not archive.exists():
        pytest.skip("shared/data/fsdd.tar.gz is not at hand")
    folder = extract(archive, to=tmp_path / "fsdd") / "fsdd/recordings"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert content_digest(found) == OFFICIAL["fsdd"].content_sha256
