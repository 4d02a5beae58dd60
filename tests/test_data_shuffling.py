"""Rows are written in a random order: how a source is sorted decides nothing."""

import io
import math
import struct
import wave
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_store import MemoryStore
from numbered import Numbers
from PIL import Image

from cluster.errors import ConfigError
from cluster.session import ray_session
from models.features import TARGET, ClassTarget, TextFeature
from orchestrator.config import Experiment
from orchestrator.data.columns import Columns, Ragged, join
from orchestrator.data.dataset import open_dataset
from orchestrator.data.manifest import Source
from orchestrator.data.order import plan_epoch
from orchestrator.data.push import push, push_prepared
from orchestrator.data.pushing import layout, pieces
from orchestrator.data.pushing.pieces import OnRay
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.driving.plan import plan_run
from orchestrator.training.fit import fit
from orchestrator.training.trainer import World

CLASSES = 4
LOGICAL_WORKERS = 4
random = np.random.default_rng(0)


def table(path: Path, labels: Sequence[int]) -> Path:
    rows = "".join(f"{i / 7},{'abc'[i % 3]},c{label}\n" for i, label in enumerate(labels))
    (path / "t.csv").write_text("x,job,label\n" + rows)
    return path / "t.csv"


def texts(path: Path, labels: Sequence[int]) -> Path:
    rows = "".join(f"word{i} again word{i % 40},c{label}\n" for i, label in enumerate(labels))
    (path / "t.csv").write_text("text,label\n" + rows + rows.replace("again", "anew").replace("word", "wort"))
    return path / "t.csv"


def text_files(path: Path, labels: Sequence[int]) -> Path:
    for i, label in enumerate(labels):
        (path / f"c{label}").mkdir(exist_ok=True)
        (path / f"c{label}" / f"{i}.txt").write_text(f"word{i % 50} and w{i % 49}")
    return path


def sparse(path: Path, labels: Sequence[int]) -> Path:
    (path / "t.svm").write_text("".join(f"{label} {1 + i % 50}:{i}.5\n" for i, label in enumerate(labels)))
    return path / "t.svm"


def picture(i: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), [i % 256, i // 256, 7], np.uint8)).save(data, "PNG")
    return data.getvalue()


def image_folder(path: Path, labels: Sequence[int]) -> Path:
    for i, label in enumerate(labels):
        (path / f"c{label}").mkdir(exist_ok=True)
        (path / f"c{label}" / f"{i:05}.png").write_bytes(picture(i))
    return path


def parquet(path: Path, labels: Sequence[int]) -> Path:
    for split, first in (("train", 0), ("test", 1000)):
        images = [{"bytes": picture(first + i), "path": None} for i in range(len(labels))]
        rows = pa.table({"image": images, "label": pa.array([int(label) for label in labels])})
        pq.write_table(rows, path / f"{split}-00000-of-00001.parquet", row_group_size=90)
    return path


def idx(path: Path, labels: Sequence[int]) -> Path:
    for name, first in (("train", 0), ("t10k", 1000)):
        pixels = np.zeros((len(labels), 4, 4), np.uint8)
        pixels[:, 0, 0], pixels[:, 0, 1] = np.divmod(first + np.arange(len(labels)), 256)
        head = struct.pack(">IIII", 0x803, len(labels), 4, 4)
        (path / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (path / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, len(labels)) + bytes(map(int, labels))
        )
    return path


def sounds(path: Path, labels: Sequence[int]) -> Path:
    for i, label in enumerate(labels):
        (path / f"c{label}").mkdir(exist_ok=True)
        with wave.open(str(path / f"c{label}" / f"{i:05}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.array([i, 2 * i, 7], "<i2").tobytes())
    return path


FORMATS: dict[str, Callable[[Path, Sequence[int]], Path]] = {
    "table": table,
    "text in a table": texts,
    "text in files": text_files,
    "svmlight": sparse,
    "image-folder": image_folder,
    "huggingface-images": parquet,
    "idx": idx,
    "wav": sounds,
}


@pytest.mark.parametrize("arrangement", ["sorted", "shuffled"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_logical_worker_has_its_share_of_every_class(tmp_path: Path, format: str, arrangement: str) -> None:
    labels = np.sort(random.integers(0, CLASSES, 480))
    if arrangement == "shuffled":
        labels = random.permutation(labels)
    store = MemoryStore()
    manifest = push(store, str(FORMATS[format](tmp_path, labels.tolist())), name="d").manifest  # type: ignore[arg-type]
    assert manifest.order == "random"
    for epoch in range(3):
        assert_fair(store, "d", epoch=epoch)


@pytest.mark.parametrize("num_groups", [1, 2, 3, 5, 16, 100, 1000])
def test_shares_are_fair_for_any_number_of_row_groups(num_groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "rows_per_group", lambda rows, size: -(-rows // num_groups))
    store = MemoryStore()
    push_prepared(store, sorted_numbers(4000), leakage="keep")  # type: ignore[arg-type]
    train = open_dataset(store, "numbers").manifest.splits["train"]  # type: ignore[arg-type]
    assert sum(len(shard.row_groups) for shard in train.shards) == num_groups
    for epoch in range(3):
        assert_fair(store, "numbers", epoch=epoch)


def sorted_numbers(rows: int) -> Prepared:
    labels = np.sort(np.arange(rows) % CLASSES)
    part = Part.of({"text": Ragged.of([np.array([i]) for i in range(rows)], dtype=np.int32), TARGET: labels})
    return Prepared(
        name="numbers",
        features={"text": TextFeature(vocabulary=("a",), max_tokens=1)},
        target=ClassTarget(classes=tuple("abcd")),
        splits={"train": part, "test": part},
        source=Source(format="test", uri="numbers"),
    )


def assert_fair(store: MemoryStore, name: str, *, epoch: int) -> None:
    """Each logical worker's count of each class is within 5 deviations of a draw without replacement."""
    dataset = open_dataset(store, name)  # type: ignore[arg-type]
    split = dataset.split("train")
    groups = [(shard, i) for shard in split.shards for i in range(len(shard.row_groups))]
    labels = np.asarray(join([dataset.read_row_group(shard, i)[TARGET] for shard, i in groups]))
    sizes = [shard.row_groups[i].rows for shard, i in groups]
    plan = plan_epoch(
        sizes,
        seed=1,
        epoch=epoch,
        logical_workers=LOGICAL_WORKERS,
        shuffle_rows=100,
        batch_size=40,
        drop_last=False,
    )
    rows = split.rows
    for worker in range(LOGICAL_WORKERS):
        ids = np.concatenate([plan.sample_ids(worker, step) for step in range(plan.num_steps)])
        for label in range(CLASSES):
            share = float((labels == label).mean())
            deviation = math.sqrt(len(ids) * share * (1 - share) * (1 - len(ids) / rows))
            assert abs((labels[ids] == label).sum() - share * len(ids)) < 5 * deviation


# ---- the ways to do it


def pieces_of_numbers(*, keeps_order: bool = False) -> Prepared:
    numbers = partial(Numbers, class_rows=3000)
    return Prepared(
        name="sentences",
        features={"text": TextFeature(vocabulary=("a", "b"), max_tokens=5)},
        target=ClassTarget(classes=("no", "yes")),
        splits={
            "train": Part((numbers(0, 2500), numbers(2500, 1), numbers(2501, 3499))),
            "test": Part((numbers(9001, 3),)),
        },
        source=Source(format="test", uri="sentences"),
        keeps_order=keeps_order,
    )


def pushed(prepared: Prepared, **arguments: object) -> MemoryStore:
    store = MemoryStore()
    push_prepared(store, prepared, leakage="keep", **arguments)  # type: ignore[arg-type]
    return store


def rows_of(store: MemoryStore, split: str = "train") -> Columns:
    dataset = open_dataset(store, "sentences")  # type: ignore[arg-type]
    shards = dataset.split(split).shards
    read = [dataset.read_row_group(shard, i) for shard in shards for i in range(len(shard.row_groups))]
    return {name: join([columns[name] for columns in read]) for name in read[0]}


def objects_but_manifest(store: MemoryStore) -> dict[str, bytes]:
    return {key: data for key, data in store.objects.items() if not key.endswith("manifest.json")}


def test_every_row_is_written_once_with_its_length_and_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 30_000)
    store = pushed(pieces_of_numbers())
    columns = rows_of(store)
    found, expected = columns["text"], rows_of(pushed(pieces_of_numbers(keeps_order=True)))["text"]
    assert isinstance(found, Ragged)
    assert isinstance(expected, Ragged)
    written = sorted((found[i].tolist(), int(columns[TARGET][i])) for i in range(6000))  # type: ignore[call-overload]
    assert written == sorted((expected[i].tolist(), i // 3000) for i in range(6000))
    split = open_dataset(store, "sentences").split("train")  # type: ignore[arg-type]
    assert len(split.shards) > 3
    lengths = open_dataset(store, "sentences").lengths("train")  # type: ignore[arg-type]
    assert lengths is not None
    np.testing.assert_array_equal(lengths, found.lengths)


def test_what_waits_on_disk_is_written_as_what_waits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 30_000)
    in_memory = pushed(pieces_of_numbers())
    monkeypatch.setattr(pieces, "KEPT_BYTES", 0)
    assert objects_but_manifest(pushed(pieces_of_numbers())) == objects_but_manifest(in_memory)
    monkeypatch.setattr(layout, "_MOST_PARTS", 2)  # several shards in one go
    assert objects_but_manifest(pushed(pieces_of_numbers())) == objects_but_manifest(in_memory)


@pytest.mark.ray
@pytest.mark.parametrize("shard_bytes", [10_000, 2**26])
def test_ray_writes_the_same_shards(store, ray_cluster, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(layout, "SHARD_BYTES", shard_bytes)
    source = parquet(tmp_path, np.sort(np.arange(400) % 4).tolist())
    here = push(store, str(source), name="here", on_cluster="never").manifest
    on_ray = push(store, str(source), name="on-ray", on_cluster="always", address=ray_cluster.address).manifest
    assert on_ray.splits == here.splits
    assert on_ray.version == here.version
    (source / "train-00000-of-00001.parquet").unlink()
    prepared = prepare(str(parquet(tmp_path, [0, 1] * 30)))
    (source / "train-00000-of-00001.parquet").unlink()
    with ray_session(ray_cluster.address), pytest.raises(ConfigError, match="must be readable on every machine"):
        push_prepared(store, prepared, runner=OnRay())


def test_the_order_of_the_source_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    store = MemoryStore()
    source = str(table(tmp_path, np.sort(np.arange(100) % 4).tolist()))
    kept = push(store, source, options=SourceOptions(order="keep", leakage="keep")).manifest  # type: ignore[arg-type]
    assert kept.order == "source"
    dataset = open_dataset(store, "t")  # type: ignore[arg-type]
    labels = dataset.read_row_group(dataset.split("train").shards[0], 0)[TARGET]
    assert labels.tolist() == sorted(labels.tolist())  # type: ignore[union-attr]
    assert push(store, source).manifest.version != kept.version  # type: ignore[arg-type]


def test_a_series_stays_in_time(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("date,x\n" + "".join(f"2020-01-{i:02},{i}\n" for i in range(1, 31)))
    source = str(tmp_path / "s.csv")
    store = MemoryStore()
    assert push(store, source).manifest.order == "time"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"order must be left out for .*s\.csv, a series, whose rows stay in time"):
        push(store, source, options=SourceOptions(order="random"))  # type: ignore[arg-type]


# ---- what it is for


def accuracy(tmp_path: Path, lines: list[str], seed: int) -> float:
    (tmp_path / "flowers.csv").write_text("a,b,c,label\n" + "".join(lines))
    store = MemoryStore()
    push(store, str(tmp_path / "flowers.csv"))  # type: ignore[arg-type]
    experiment = Experiment.model_validate(
        {
            "data": {"name": "flowers"},
            "model": {"type": "mlp", "hidden": [16]},
            "techniques": "deep",
            "train": {"epochs": 12, "batch_size": 32, "learning_rate": 0.05, "seed": seed},
            "scaling": {"logical_workers": 4},
        }
    )
    record = plan_run(experiment, open_dataset(store, "flowers"), run="flowers-run")  # type: ignore[arg-type]
    return fit(record, store=store, world=World()).history[-1]["accuracy"]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sorted_file_trains_as_well_as_a_shuffled_one(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(5)
    centres = np.array([[0, 0, 0], [4, 1, 0], [1, 4, 2]])
    lines = [
        ",".join(f"{x:.3f}" for x in centres[kind] + draw.normal(size=3)) + f",kind{kind}\n"
        for kind in range(3)
        for _ in range(110)
    ]
    mixed = [lines[i] for i in draw.permutation(len(lines))]
    assert accuracy(tmp_path, lines, seed) >= 0.93
    assert accuracy(tmp_path, mixed, seed) >= 0.93
