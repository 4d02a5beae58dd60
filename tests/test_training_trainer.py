"""Training without Ray: the same bits for every worker count and after every interruption."""

import hashlib
import math
import multiprocessing
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from cluster.errors import RunFailedError
from models.features import TARGET
from models.network import build
from orchestrator.config import Experiment, TrainConfig
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.data.sources.options import SourceOptions
from orchestrator.driving.plan import plan_run
from orchestrator.runs.checkpoint import checkpoint_prefixes
from orchestrator.runs.record import RunRecord
from orchestrator.training.epoch import evaluate, learning_rate, train_epoch
from orchestrator.training.fit import fit
from orchestrator.training.saving import CheckpointWriter
from orchestrator.training.trainer import Trainer, World, build_trainer
from tests.fake_store import MemoryStore
from tests.ports import free_port

MODELS: dict[str, dict[str, Any]] = {
    "cnn": {
        "data": {"name": "digits", "augment": ["crop"]},
        "model": {"type": "cnn", "channels": [4, 8]},
        "train": {"epochs": 2, "batch_size": 240, "learning_rate": 0.1, "label_smoothing": 0.1},
    },
    "mlp": {
        "data": {"name": "digits"},
        "model": {"type": "mlp", "hidden": [16]},
        "techniques": {"preset": "traditional"},
        "train": {"epochs": 2, "batch_size": 120, "learning_rate": 0.1},
    },
    "rnn": {
        "data": {"name": "elnino", "lookback": 12, "horizon": 3},
        "model": {"type": "rnn", "cell": "lstm", "hidden_size": 8, "layers": 2},
        "train": {"epochs": 2, "batch_size": 96, "learning_rate": 0.01, "optimizer": "adam", "clip_norm": 0.5},
    },
    "fm": {
        "data": {"name": "china"},
        "model": {"type": "fm", "factors": 4},
        "techniques": {"preset": "deep", "regularization": "penalty"},
        "train": {"epochs": 2, "batch_size": 4080, "learning_rate": 0.01, "weight_decay": 0.01},
    },
    "rnn on texts": {
        "data": {"name": "reviews", "bucket_batches": 3},
        "model": {"type": "rnn", "hidden_size": 8},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.1},
    },
    "rnn on many series with gaps": {
        "data": {"name": "panel", "lookback": 6, "horizon": 2},
        "model": {"type": "rnn", "hidden_size": 8},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05},
    },
    "rnn on sounds": {
        "data": {"name": "tones"},
        "model": {"type": "rnn", "cell": "gru", "hidden_size": 8},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1},
    },
    "fm on sparse rows": {
        "data": {"name": "rows"},
        "model": {"type": "fm", "factors": 4},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
    },
    "cnn on picture files": {
        "data": {"name": "colours"},
        "model": {"type": "cnn", "channels": [4]},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1},
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    found, folder = MemoryStore(), tmp_path_factory.mktemp("sources")
    for source in ("sklearn:digits", "statsmodels:elnino", "sklearn:china"):
        push(found, source)  # type: ignore[arg-type]
    options = {"colours": SourceOptions(side=16, encoding="file"), "panel": SourceOptions(gaps="split")}
    writers = {
        "panel": write_panel,
        "reviews": write_texts,
        "tones": write_sounds,
        "rows": write_rows,
        "colours": write_pictures,
    }
    for name, write in writers.items():
        push(found, str(write(folder / name)), name=name, options=options.get(name))  # type: ignore[arg-type]
    return found


def write_panel(path: Path) -> Path:
    path.mkdir()
    hours = [hour for hour in range(90) if hour not in (30, 31, 60)]
    rows = [
        f"{name},2024-01-{1 + h // 24:02} {h % 24:02}:00,{math.sin(h / 4) * k}"
        for k, name in enumerate("abc")
        for h in hours
    ]
    (path / "panel.csv").write_text("\n".join(["item_id,date,value", *rows]))
    return path / "panel.csv"


def write_texts(path: Path) -> Path:
    path.mkdir()
    lines = [f"a {'very ' * (i % 9)}{word} film number {i},{word}" for word in ("good", "bad") for i in range(40)]
    (path / "reviews.csv").write_text("\n".join(["text,label", *lines]))
    return path / "reviews.csv"


def write_sounds(path: Path) -> Path:
    for label, hertz in (("low", 200), ("high", 900)):
        (path / label).mkdir(parents=True)
        for i in range(12):
            samples = np.sin(np.arange(800 + 37 * i) * (2 * math.pi * (hertz + i) / 8000)) * 20_000
            with wave.open(str(path / label / f"{i}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(samples.astype("<i2").tobytes())
    return path


def write_rows(path: Path) -> Path:
    path.mkdir()
    rows = [" ".join(f"{1 + i * k % 30 + 30 * k}:{k}.5" for k in range(i % 5 + 1)) for i in range(80)]
    (path / "rows.svm").write_text("\n".join(f"{i % 7 - 3.5} {row}" for i, row in enumerate(rows)))
    return path / "rows.svm"


def write_pictures(path: Path) -> Path:
    for label, channel in (("red", 0), ("blue", 2)):
        (path / label).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((20 + i, 24, 3), i, np.uint8)
            pixels[..., channel] = 250 - i
            Image.fromarray(pixels).save(path / label / f"{i}.png")
    return path


def record_of(store: Any, name: str, *, workers: int = 1, **train: Any) -> RunRecord:
    settings = {**MODELS[name], "scaling": {"workers": workers, "logical_workers": 4}}
    settings["train"] = settings["train"] | train
    experiment = Experiment.model_validate(settings)
    return plan_run(experiment, open_dataset(store, experiment.data.name), run=f"{name}-run".replace(" ", "-"))


def digest(trainer: Trainer) -> str:
    """Of weights, running statistics, optimizer state and metrics: everything that must not depend on anything."""
    tensors = [*trainer.network.state_dict().values()]
    tensors += [tensor for _, tensor in sorted(trainer.updater.tensors().items())]
    timed = {"seconds", "samples_per_s", "waiting_share"}
    metrics = [{k: float(v) for k, v in entry.items() if k not in {*timed, "why"}} for entry in trainer.history]
    parts = [t.detach().contiguous().numpy().tobytes() for t in tensors] + [repr(metrics).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def panels(trainer: Trainer) -> list[Any]:
    """What the why panel showed in every epoch."""
    return [entry.get("why") for entry in trainer.history]


def worker(rank: int, port: int, tasks: Any, results: Any) -> None:
    """One of two processes in a group: trains what it is given, until that is nothing."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    while task := tasks.get():
        objects, record = task
        store = MemoryStore(objects=objects)
        trainer = fit(record, store=store, world=World(rank, 2), checkpoints="last")  # type: ignore[arg-type]
        results.put((rank, digest(trainer), panels(trainer)))
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def train_in_two() -> Iterator[Callable[[MemoryStore, RunRecord], list[Any]]]:
    """Trains with two workers and returns what each found. The processes serve all tests, as they start slowly."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    tasks, results = [context.SimpleQueue() for _ in range(2)], context.SimpleQueue()
    processes = [context.Process(target=worker, args=(rank, port, tasks[rank], results)) for rank in range(2)]
    for process in processes:
        process.start()

    def train(store: MemoryStore, record: RunRecord) -> list[Any]:
        for queue in tasks:
            queue.put((store.objects, record))
        return sorted(results.get() for _ in processes)

    yield train
    for queue in tasks:
        queue.put(None)
    for process in processes:
        process.join()


@pytest.mark.parametrize("name", MODELS)
def test_two_workers_end_with_the_bits_of_one(
    store: MemoryStore, name: str, train_in_two: Callable[[MemoryStore, RunRecord], list[Any]]
) -> None:
    alone = fit(record_of(store, name), store=store, world=World(), checkpoints="last")  # type: ignore[arg-type]
    found = train_in_two(store, record_of(store, name, workers=2))
    assert [bits for _, bits, _ in found] == [digest(alone)] * 2
    assert found[0][2] == panels(alone) and all(panels(alone))


class StoppedError(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.mark.parametrize("name", MODELS)
def test_a_stopped_run_continues_to_the_same_bits(
    store: MemoryStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = fit(record_of(store, name, epochs=3), store=store, world=World(), checkpoints="last")  # type: ignore[arg-type]
    broken = MemoryStore(objects={k: v for k, v in store.objects.items() if k.startswith("datasets/")})

    def stop_in_second_epoch(trainer: Trainer, epoch: int, writer: CheckpointWriter | None = None) -> dict[str, float]:
        if epoch == 1:
            raise StoppedError
        return train_epoch(trainer, epoch, writer)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr("orchestrator.training.fit.train_epoch", stop_in_second_epoch)
        fit(record_of(broken, name, epochs=3), store=broken, world=World())  # type: ignore[arg-type]
    assert len(list(checkpoint_prefixes(broken, run=f"{name}-run".replace(" ", "-")))) == 1  # type: ignore[arg-type]
    resumed = fit(record_of(broken, name, epochs=3), store=broken, world=World())  # type: ignore[arg-type]
    assert digest(resumed) == digest(unbroken)
    assert panels(resumed) == panels(unbroken)


def test_a_seed_changes_the_result(store: MemoryStore) -> None:
    results = {
        digest(fit(record_of(store, "cnn", seed=seed), store=store, world=World(), checkpoints="last"))  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    }
    assert len(results) == 2


def test_batch_gradient_descent_is_one_update_along_the_gradient_of_the_whole_epoch(store: MemoryStore) -> None:
    record = record_of(store, "mlp", epochs=1, momentum=0.0, schedule="constant", l1=0.0, l2=0.0)
    assert record.techniques.gradient == "batch"
    trainer = build_trainer(record, store=store, world=World())  # type: ignore[arg-type]
    start = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    train_epoch(trainer, 0)
    assert trainer.update == 1

    reference = build(record.experiment.model, record.techniques, record.signature, seed=0)
    everything = next(iter(trainer.reader.evaluate_batches("train", worker=0, workers=1, batch_size=10_000)))[1].tensors
    loss = reference.task.loss_sum(reference(everything), everything[TARGET]) / len(everything[TARGET])
    loss.backward()
    for name, p in reference.named_parameters():
        moved = start[name] - trainer.network.get_parameter(name)
        assert p.grad is not None
        torch.testing.assert_close(moved, record.experiment.train.learning_rate * p.grad, rtol=1e-3, atol=1e-6)


def test_training_learns(store: MemoryStore) -> None:
    trainer = fit(
        record_of(store, "cnn", epochs=6, batch_size=64),
        store=store,
        world=World(),
        checkpoints="last",  # type: ignore[arg-type]
    )
    assert trainer.history[-1]["accuracy"] > 0.6  # guessing reaches 0.1
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]


def test_evaluation_does_not_depend_on_the_batch_size_or_change_the_network(store: MemoryStore) -> None:
    trainer = build_trainer(record_of(store, "cnn"), store=store, world=World())  # type: ignore[arg-type]
    before = digest(trainer)
    once = evaluate(trainer, "test")
    assert evaluate(trainer, "test") == once
    assert once["accuracy"] * 359 == pytest.approx(round(once["accuracy"] * 359))
    assert digest(trainer) == before


def test_a_loss_that_is_no_number_stops_the_run_with_a_cure(store: MemoryStore) -> None:
    record = record_of(store, "rnn", learning_rate=1e30, optimizer="sgd", clip_norm=None, warmup=0.0)
    with pytest.raises(RunFailedError, match=r"train_loss must be a finite number, got .* Lower train.learning_rate"):
        fit(record, store=store, world=World(), checkpoints="last")  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_the_learning_rate_stays_positive_and_below_its_highest(schedule: str) -> None:
    settings = TrainConfig.model_validate({"epochs": 1, "learning_rate": 0.5, "schedule": schedule})
    for total in (1, 2, 7, 100):
        rates = [learning_rate(settings, update, total) for update in range(total)]
        assert all(0 < rate <= 0.5 for rate in rates), (total, rates)
        assert not any(math.isclose(rate, 0, abs_tol=1e-9) for rate in rates)
    if schedule != "constant":
        assert rates.index(max(rates)) == pytest.approx(20, abs=1)
        assert rates[-1] < 0.02
