"""The three datasets of the streaming benchmark: small images, encoded pictures and rows of numbers, all seeded.

Each is sorted by class, so that shuffling matters, and every sample holds its own number: see `touch`.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_sample_images

from cluster.s3.store import Store
from models.features import TARGET, CategoricalFeature, ClassTarget, ImageFeature, NumberTarget
from orchestrator.data.columns import Ragged
from orchestrator.data.manifest import Source
from orchestrator.data.push import push_prepared
from orchestrator.data.sources.prepared import Part, Prepared
from tests.benchmarks.streaming_timing import CLASSES, ITEMS, SIDE, WORD

Array = np.ndarray[Any, Any]

CONTEXTS = 24
PIXELS = 400
QUALITY = 90
FILE_BYTES = 64 * 2**20
BATCHES_PER_GROUP = {"images": 5, "pictures": 1, "rows": 800}
"""A row group of Parquet holds whole batches, so that the raw reader slices without copying; about 8 MiB."""


@dataclass(frozen=True)
class Data:
    """One dataset in memory: arrays with a sample on axis 0, or for `pictures` a list of files."""

    kind: str
    batch_size: int
    columns: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.columns[TARGET])


def make(kind: str, rows: int) -> Data:
    """Return `rows` samples of one kind."""
    match kind:
        case "images":
            return Data(kind, 512, _images(rows))
        case "pictures":
            return Data(kind, 64, {"image": _pictures(rows), TARGET: np.arange(rows)})
        case _:
            return Data(kind, 512, _rows(rows))


def push(store: Store, data: Data, *, name: str) -> None:
    """Put the data into the store as a dataset of ours."""
    features, target, columns = _described(data)
    push_prepared(
        store,
        Prepared(
            name=name,
            features=features,
            target=target,
            splits={"train": Part.of(columns)},
            source=Source(format="benchmark", uri="benchmark"),
        ),
    )


def write_parquet(store: Store, data: Data, *, folder: str) -> list[str]:
    """Put the data into the store as plain Parquet, uncompressed, and return the keys."""
    table = _table(data)
    group_rows = BATCHES_PER_GROUP[data.kind] * data.batch_size
    groups_per_file = max(1, FILE_BYTES * data.rows // (table.nbytes * group_rows))
    keys = []
    for number, start in enumerate(range(0, data.rows, groups_per_file * group_rows)):
        sink = io.BytesIO()
        part = table.slice(start, groups_per_file * group_rows)
        pq.write_table(
            part, sink, row_group_size=group_rows, compression="none", use_dictionary=False, write_statistics=False
        )
        keys.append(f"{folder}/{number:05}.parquet")
        store.write(keys[-1], sink.getvalue())
    return keys


def save_records(data: Data, file: Path) -> None:
    """Write the samples as (bytes, target) records, which is what the peers' own formats hold."""
    records = list(_records(data))
    lengths = np.array([len(record) for record in records])
    np.savez(file, records=np.frombuffer(b"".join(records), np.uint8), lengths=lengths, targets=data.columns[TARGET])


def _records(data: Data) -> Iterator[bytes]:
    if data.kind == "pictures":
        yield from data.columns["image"]
    elif data.kind == "images":
        yield from (image.tobytes() for image in data.columns["image"])
    else:
        columns = [data.columns[name].view(np.int32) for name in ("user", "item", "context", TARGET)]
        yield from (row.tobytes() for row in np.stack(columns, axis=1))


def _images(rows: int) -> dict[str, Array]:
    images = np.random.default_rng(0).integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
    numbers = np.arange(rows, dtype="<u4").view(np.uint8).reshape(rows, WORD)
    images.reshape(rows, -1)[:, :WORD] = numbers
    return {"image": images, TARGET: np.arange(rows) * CLASSES // rows}


def _pictures(rows: int) -> list[bytes]:
    """Crops of two photos with noise, so that no two are alike, as JPEG files of about 100 kB."""
    random = np.random.default_rng(0)
    photos = load_sample_images().images
    files = []
    for _ in range(rows):
        photo = photos[random.integers(len(photos))]
        top, left = (random.integers(side - PIXELS + 1) for side in photo.shape[:2])
        noise = random.normal(0, 14, (PIXELS, PIXELS, 3))
        crop = np.clip(photo[top : top + PIXELS, left : left + PIXELS] + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(crop).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def _rows(rows: int) -> dict[str, Array]:
    random = np.random.default_rng(0)
    numbers = np.arange(rows)
    return {
        "user": (numbers // ITEMS + 1).astype(np.int32),
        "item": (numbers % ITEMS + 1).astype(np.int32),
        "context": random.integers(1, CONTEXTS + 1, rows).astype(np.int32),
        TARGET: random.uniform(1, 5, rows).astype(np.float32),
    }


def _described(data: Data) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Return our features, target and columns."""
    statistics: Any = {"mean": (127.5,) * 3, "std": (73.9,) * 3}
    columns = data.columns
    match data.kind:
        case "images":
            features: dict[str, Any] = {"image": ImageFeature(shape=(3, 32, 32), **statistics)}
            return features, ClassTarget(classes=_names(CLASSES)), columns
        case "pictures":
            features = {"image": ImageFeature(encoding="file", shape=(3, SIDE, SIDE), **statistics)}
            files = [np.frombuffer(file, np.uint8) for file in columns["image"]]
            columns = {"image": Ragged.of(files, dtype=np.uint8), TARGET: columns[TARGET]}
            return features, ClassTarget(classes=_names(data.rows)), columns
        case _:
            sizes = {"user": int(columns["user"].max()), "item": ITEMS, "context": CONTEXTS}
            features = {name: CategoricalFeature(vocabulary=_names(size)) for name, size in sizes.items()}
            return features, NumberTarget(mean=3.0, std=1.2, minimum=1.0, maximum=5.0), columns


def _names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _table(data: Data) -> pa.Table:
    columns = dict(data.columns)
    if data.kind == "images":
        flat = columns["image"].reshape(data.rows, -1)
        columns["image"] = _fixed(flat)
    elif data.kind == "pictures":
        columns["image"] = _files(columns["image"])
    return pa.table(columns)


def _fixed(rows_NB: Array) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(rows_NB.shape[1]), len(rows_NB), [None, pa.py_buffer(rows_NB)])


def _files(files: Sequence[bytes]) -> pa.Array:
    """As Hugging Face stores pictures."""
    paths = [f"{number}.jpg" for number in range(len(files))]
    return pa.StructArray.from_arrays([pa.array(files, pa.binary()), pa.array(paths)], ["bytes", "path"])
