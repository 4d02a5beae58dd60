"""What every loader of the streaming benchmark goes through: the same touch, the same clock, the same checks.

Runs in the peers' environments too, so it needs the standard library, NumPy, Pillow and psutil only. A loader is a
function from a `Task` to a function from the number of the pass to its batches. A batch is a mapping of arrays or
tensors with the samples on the first axis. Of each, `touch` reads the bytes that tell which sample it is.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

SIDE = 224
ITEMS = 4096
"""Of the factorization rows: user and item together number the row."""
CLASSES = 10
WORD = 4
"""Bytes at the beginning of an image that hold its number."""

Batch = Mapping[str, Any]
Passes = Callable[[int], Iterator[Batch]]


@dataclass(frozen=True)
class Task:
    """One run of one loader, in a process of its own."""

    loader: str
    kind: str
    """`images`, `pictures` or `rows`."""
    rows: int
    batch_size: int
    paths: list[str]
    """Keys of the dataset's objects in this loader's format; for ours, its name."""
    store: dict[str, Any]
    """Settings of the store; they name a profile, and hold no key."""
    bucket: str
    folder: str
    """For a local cache; empty at the beginning."""
    passes: int = 2
    consumer: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """One time through the data. The clock of the first one starts before the loader is made."""

    samples: int
    started_at: float
    first_batch_s: float
    seconds: float
    cpu_s: float
    """Of the process and those of its children that have ended; unlike seconds, nearly the same on a busy machine."""
    missing: int
    """Samples that never came."""
    repeated: int
    """Samples that came once more than they should."""
    neighbour_correlation: float
    """Of the class of each sample and the next, the data being sorted by class: 0 is a full shuffle."""
    neighbour_distance: float
    """Mean difference between the numbers of a sample and the next, by the number of samples: 1/3 is a full shuffle."""


def run(loaders: Mapping[str, Callable[[Task], Passes]], prepare: Callable[[Task], None] = lambda _task: None) -> None:
    """Do the task of the command line when the parent says so, and print its passes as the last line.

    Args:
        loaders: by name.
        prepare: what is not counted, such as starting Ray.
    """
    task = Task(**json.loads(sys.argv[1]))
    prepare(task)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps([asdict(done) for done in time_passes(task, loaders[task.loader])]))


def time_passes(task: Task, open_loader: Callable[[Task], Passes]) -> list[Pass]:
    """Open the loader and go through the data several times."""
    done = []
    started, cpu_s = time.perf_counter(), _cpu_s()
    batches_of = open_loader(task)
    for number in range(task.passes):
        done.append(_time_pass(task, batches_of(number), started, cpu_s))
        started, cpu_s = time.perf_counter(), _cpu_s()
    return done


def touch(kind: str, batch: Batch) -> np.ndarray[Any, Any]:
    """Return the number of every sample, read from its data."""
    if kind == "images":
        images = np.asarray(batch["image"])
        assert images.shape[1:] == (3, 32, 32), images.shape
        return np.ascontiguousarray(images.reshape(len(images), -1)[:, :WORD]).view("<u4")[:, 0]
    if kind == "pictures":
        pictures = np.asarray(batch["image"])
        assert pictures.shape[1:] == (3, SIDE, SIDE), pictures.shape
        assert pictures[:, 1, 1, 1].sum() >= 0
        return np.array(batch["target"])
    assert np.asarray(batch["target"]).dtype == np.float32
    return (np.asarray(batch["user"], np.int64) - 1) * ITEMS + np.asarray(batch["item"]) - 1


def decode(file: Any) -> np.ndarray[Any, Any]:
    """Return the pixels of a JPEG, [3, SIDE, SIDE]."""
    picture = Image.open(io.BytesIO(file)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def neighbours(ids: np.ndarray[Any, Any], rows: int) -> tuple[float, float]:
    """Return correlation and distance of neighbours; see `Pass`."""
    classes = ids * CLASSES // rows
    return float(np.corrcoef(classes[:-1], classes[1:])[0, 1]), float(np.abs(np.diff(ids)).mean() / rows)


def _time_pass(task: Task, batches: Iterator[Batch], started: float, cpu_s: float) -> Pass:
    started_at = time.time() - (time.perf_counter() - started)
    parts = []
    first_batch_s = 0.0
    for batch in batches:
        parts.append(touch(task.kind, batch))
        first_batch_s = first_batch_s or time.perf_counter() - started
    seconds, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
    ids = np.concatenate(parts).astype(np.int64)
    counts = np.bincount(ids, minlength=task.rows)
    return Pass(
        len(ids),
        started_at,
        first_batch_s,
        seconds,
        cpu_s,
        int((counts == 0).sum()),
        int(np.maximum(counts - 1, 0).sum()),
        *neighbours(ids, task.rows),
    )


def _cpu_s() -> float:
    return sum(os.times()[:4])
