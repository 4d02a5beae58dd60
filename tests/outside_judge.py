"""A training whose store is a folder, for a judge from outside that kills at events of files: `ckpt-chaos` (PyPI).

    ckpt-chaos run --step-regex "resumed from step (\\d+)" --result-file "{out}/result.safetensors" \
        -- python -m tests.outside_judge {out}

The training is the product's own: `push`, the lease, `fit` and the checkpoints are what a worker of a run uses. Only
the store is another one, and it exists for this judge alone: the product writes to S3 by HTTP, where no event of a file
happens in the process that trains. docs/reliability.md says what the judge found.
"""

import argparse
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from safetensors.torch import save

from cluster.errors import IntegrityError, NotFoundError, PreconditionError
from cluster.s3.store import ObjectInfo
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving.plan import plan_run
from orchestrator.runs.checkpoint import list_checkpoints
from orchestrator.runs.lease import Lease
from orchestrator.runs.pulse import PULSE
from orchestrator.training import fit as fitting
from orchestrator.training.trainer import Trainer, World, snapshot

RUN = "judged"
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {"type": "mlp", "hidden": [64, 32]},
    "techniques": "deep",
    "train": {"batch_size": 16, "learning_rate": 0.05, "momentum": 0.9, "checkpoint_steps": 60},
}
TIMED = {"seconds", "samples_per_s", "waiting_share", "why"}  # of the metrics; no two runs have the same


@dataclass(eq=False)
class FolderStore:
    """Objects as files below a folder, with the interface of `cluster.s3.store.Store`; for one process that writes.

    A write is whole or absent, as a PUT to S3 is: the bytes go to a file aside, to the disk, and then to their name.
    With ``in_place`` they go to their name at once, so that a kill leaves half an object, which no S3 store does.
    """

    root: Path
    in_place: bool = False
    policy: Any = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __copy__(self) -> "FolderStore":
        return self

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes:
        return self.read_with_etag(key, most_bytes=most_bytes)[0]

    def read_with_etag(self, key: str, *, most_bytes: int | None = None) -> tuple[bytes, str]:
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"{key} must exist, got nothing.") from None
        if most_bytes is not None and len(data) > most_bytes:
            raise IntegrityError(f"{key} must have at most {most_bytes:,} bytes, got {len(data):,}.")
        return data, _etag(data)

    def read_range(self, key: str, *, start: int, length: int) -> bytes:
        return self.read(key)[start : start + length]

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def folders(self, prefix: str = "") -> list[str]:
        prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        rest = [info.key.removeprefix(prefix) for info in self.list(prefix)]
        return sorted({name.split("/")[0] for name in rest if "/" in name})

    def write(self, key: str, data: bytes, *, only_if_absent: bool = False, only_if_etag: str | None = None) -> str:
        with self._lock:
            if only_if_absent and self.exists(key):
                raise PreconditionError(f"{key} must not exist, got an object.")
            if only_if_etag is not None and self.read_with_etag(key)[1] != only_if_etag:
                raise PreconditionError(f"{key} must be unchanged, got another etag.")
            self._put(self._path(key), data)
        return _etag(data)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> "list[ObjectInfo]":
        files = [path for path in sorted((self.root / "objects").rglob("*")) if path.is_file()]
        now = datetime.now(UTC)
        found = [(path.relative_to(self.root / "objects").as_posix(), path.read_bytes()) for path in files]
        return [ObjectInfo(key, len(data), _etag(data), now) for key, data in found if key.startswith(prefix)]

    def _path(self, key: str) -> Path:
        return self.root / "objects" / key

    def _put(self, path: Path, data: bytes) -> None:
        aside = self.root / "uploads" / path.name
        for folder in (path.parent, aside.parent):
            if not folder.is_dir():  # what is there already would be one more event of a file
                folder.mkdir(parents=True, exist_ok=True)
        with (path if self.in_place else aside).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not self.in_place:
            aside.replace(path)


def train(out: Path, *, epochs: int = 2, keep: int = 2, in_place: bool = False) -> int:
    """Push the digits, train to the last epoch, write the result; return the step that the training went on from."""
    store: Any = FolderStore(out / "store", in_place=in_place)
    push(store, "sklearn:digits")
    settings = {"train": {**EXPERIMENT["train"], "epochs": epochs, "keep_checkpoints": keep}}
    record = plan_run(Experiment.model_validate(EXPERIMENT | settings), open_dataset(store, "digits"), run=RUN)
    PULSE.begin()
    with names_of_attempts(store), Lease(store, run=RUN, lease_s=0, renew_s=3600) as lease:
        trainer = fitting.fit(record, store=store, world=World(), lease=lease.number)
    write_result(trainer, out)
    return int(PULSE.resumed_from.split("/")[-2].partition("-")[0]) if PULSE.resumed_from else 0


@contextmanager
def names_of_attempts(store: Any) -> Iterator[None]:
    """Give a run's first attempt checkpoints of known names, so that the judge finds those of two first attempts alike.

    It compares them by name, and takes the last number in a name for the step; a later attempt has names of its own.
    """
    if list_checkpoints(store, run=RUN):
        yield
        return
    with patch.object(fitting, "secrets", SimpleNamespace(token_hex=lambda _: "aaaaaaaa")):
        yield


def write_result(trainer: Trainer, out: Path) -> None:
    """Write what must be the same bits after every kill: weights, optimizer and metrics."""
    weights, optimizer, progress = snapshot(trainer)
    metrics = [{name: value for name, value in epoch.items() if name not in TIMED} for epoch in progress.history]
    tensors = {f"weights.{k}": v for k, v in weights.items()} | {f"optimizer.{k}": v for k, v in optimizer.items()}
    aside, path = out / "result.part", out / "result.safetensors"
    aside.write_bytes(save(tensors, {"metrics": json.dumps(metrics, sort_keys=True)}))
    aside.replace(path)


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def main() -> None:
    """Train what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the store and of the result")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--keep", type=int, default=2, help="checkpoints; older ones are removed while it trains")
    parser.add_argument("--in-place", action="store_true", help="write no object aside: a kill leaves half of one")
    arguments = vars(parser.parse_args())
    print(f"resumed from step {train(arguments.pop('out'), **arguments)}")


if __name__ == "__main__":
    main()
