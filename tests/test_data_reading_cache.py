"""The cache: shared by all processes of a machine, bounded, and only ever a shortcut."""

import logging
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.data.reading import cache as cache_module
from orchestrator.data.reading.cache import IDLE_S, Cache, cache_folder, clear_cache, open_cache

KEYS = [f"{i:064x}" for i in range(20)]


def table(number: int, rows: int = 1000) -> pa.Table:
    return pa.table({"x": np.full(rows, number)})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == ".arrow"}


def test_what_was_put_is_found_by_any_cache_of_the_folder(tmp_path):
    Cache(tmp_path / "c", 2**20).put(KEYS[0], table(7))
    other = Cache(tmp_path / "c", 2**20)
    assert other.get(KEYS[0]) == table(7)
    assert other.get(KEYS[1]) is None


def test_the_folder_belongs_to_its_owner_alone(tmp_path):
    Cache(tmp_path / "c", 2**20).put(KEYS[0], table(7))
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


def test_no_more_is_kept_than_the_limit_even_by_many_threads(tmp_path):
    caches = [Cache(tmp_path, 50_000) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        returned = list(pool.map(lambda i: caches[i % 4].put(KEYS[i], table(i)), range(20)))
    assert returned == [table(i) for i in range(20)]  # kept or not, the table is there
    assert 4 <= len(names(tmp_path)) <= 6
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 50_000


def test_what_nobody_has_used_for_long_makes_room_and_nothing_else_does(tmp_path):
    cache = Cache(tmp_path, 20_000)
    for i in range(3):
        cache.put(KEYS[i], table(i))
    assert names(tmp_path) == {KEYS[0] + ".arrow", KEYS[1] + ".arrow"}
    long_ago = time.time() - IDLE_S - 10
    os.utime(tmp_path / (KEYS[0] + ".arrow"), (long_ago, long_ago))
    cache.put(KEYS[3], table(3))
    assert names(tmp_path) == {KEYS[1] + ".arrow", KEYS[3] + ".arrow"}
    assert cache.get(KEYS[0]) == table(0)  # still mapped: removing a file does not hurt who reads it
    assert Cache(tmp_path, 20_000).get(KEYS[0]) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_file_is_removed_and_counts_as_absent(tmp_path, caplog, damage):
    Cache(tmp_path, 2**20).put(KEYS[0], table(7))
    path = tmp_path / (KEYS[0] + ".arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flip": data, "truncate": data[:-9], "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert Cache(tmp_path, 2**20).get(KEYS[0]) is None
    assert "is damaged" in caplog.text
    assert not path.exists()


def test_a_full_disk_ends_caching_with_one_line_and_leaves_no_part(tmp_path):
    """In a process of its own, that may not write files of more than 20 kB."""
    script = f"""
        import logging, resource, signal
        import numpy as np, pyarrow as pa
        from pathlib import Path
        from orchestrator.data.reading.cache import Cache
        logging.basicConfig(format="%(message)s")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        cache = Cache(Path({str(tmp_path)!r}), 2**20)
        for i in range(3):
            rows = pa.table({{"x": np.full(10_000, i)}})
            assert cache.put(str(i), rows) == rows
        assert cache.put("small", pa.table({{"x": [1]}})) is not None
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert len(ended.stderr.splitlines()) == 1
    assert f"the cache {tmp_path} takes no more: [Errno 27] File too large" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_SHARE_LEFT_FREE", 1.0)
    Cache(tmp_path, 2**20).put(KEYS[0], table(0))
    assert names(tmp_path) == set()


def test_memory_and_disk_are_folders_that_a_variable_may_name(monkeypatch, tmp_path):
    monkeypatch.delenv("ORCHESTRATOR_CACHE")
    if Path("/dev/shm").is_dir():
        assert cache_folder("memory").parent == Path("/dev/shm")
    assert str(os.getuid()) in cache_folder("disk").name
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))
    assert {cache_folder("memory"), cache_folder("disk")} == {tmp_path / "memory", tmp_path / "disk"}


def test_there_is_no_cache_where_none_is_wanted():
    assert open_cache("none", 1024) is open_cache("memory", 0) is None


def test_clearing_removes_all_and_says_how_much(monkeypatch, tmp_path):
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))
    cache = open_cache("memory", 1)
    assert cache is not None
    cache.put(KEYS[0], table(0))
    assert clear_cache("memory") > 8000
    assert not cache.folder.exists()
    assert clear_cache("memory") == 0
    assert cache.put(KEYS[1], table(1)) == table(1)
