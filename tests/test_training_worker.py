"""A run with damaged rows: what is left out is found once, and the bits are the same for any workers and any kills."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from cluster.errors import IntegrityError
from cluster.s3.store import Store
from models.records import DatasetRef
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.push import push
from orchestrator.data.pushing import layout
from orchestrator.data.sources.options import SourceOptions
from orchestrator.driving.plan import warn_of_left_out
from orchestrator.runs.record import RunRecord
from orchestrator.training import fit as fit_module
from orchestrator.training.epoch import train_epoch
from orchestrator.training.fit import fit
from orchestrator.training.together import fit_together
from orchestrator.training.trainer import Trainer, World
from orchestrator.training.worker import describe, look_through
from tests.fake_store import MemoryStore
from tests.test_training_trainer import (
    StoppedError,
    digest,
    record_of,
    train_in_two,  # noqa: F401
    write_pictures,
    write_texts,
)

MODELS = ("cnn", "mlp", "rnn", "rnn on texts", "cnn on picture files")
SKIP = {"damaged": "skip", "damaged_share": 0.3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """Datasets of many small row groups."""
    store, folder = MemoryStore(), tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_LEAST_GROUP_ROWS", 4)
        for source in ("sklearn:digits", "statsmodels:elnino"):
            push(store, source)  # type: ignore[arg-type]
        push(store, str(write_texts(folder / "reviews")), name="reviews")  # type: ignore[arg-type]
        pictures = str(write_pictures(folder / "colours"))
        push(store, pictures, name="colours", options=SourceOptions(side=16, encoding="file"))  # type: ignore[arg-type]
    return store


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A copy from before the damage would be as good as the object."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path_factory.mktemp("cache")))


def damaged(whole: MemoryStore, *names: str, split: str = "train", groups: tuple[int, ...] = (1, 2)) -> MemoryStore:
    """A copy in which bytes of some row groups of a split's first shard are flipped."""
    store = MemoryStore(objects=dict(whole.objects))
    for name in names:
        dataset = opened(store, name)
        shard = dataset.split(split).shards[0]
        key = f"datasets/{name}/{dataset.manifest.version}/{shard.path}"
        data = bytearray(store.objects[key])
        for group in groups:
            data[shard.row_groups[group].offset + 10] ^= 1
        store.objects[key] = bytes(data)
    return store


def opened(store: Any, name: str) -> Dataset:
    return open_dataset(store, name)


def planned(store: Any, model: str, *, workers: int = 1, data: dict[str, Any] | None = None, **train: Any) -> RunRecord:
    """The record of a run that may leave out damaged rows, looked through."""
    record = record_of(store, model, workers=workers, **train)
    changed = record.experiment.data.model_copy(update=SKIP if data is None else data)
    record = record.model_copy(update={"experiment": record.experiment.model_copy(update={"data": changed})})
    return looked_through(store, record)[0]


def looked_through(store: Any, *records: RunRecord) -> list[RunRecord]:
    datasets: dict[DatasetRef, Dataset] = {r.dataset: opened(store, r.dataset.name) for r in records}
    return look_through(records, datasets)


def train(record: RunRecord, store: Any, **options: Any) -> Trainer:
    return fit(record, store=store, world=World(), **options)


@pytest.mark.parametrize("model", MODELS)
def test_two_workers_end_with_the_bits_of_one(
    whole: MemoryStore,
    model: str,
    train_in_two: Callable[[MemoryStore, RunRecord], list[Any]],  # noqa: F811
) -> None:
    name = record_of(whole, model).dataset.name
    store = damaged(whole, name)
    record = planned(store, model)
    assert record.rows_left_out
    alone = train(record, store, checkpoints="last")
    found = train_in_two(store, planned(store, model, workers=2))
    assert [bits for _, bits, _ in found] == [digest(alone)] * 2
    assert [entry["rows_left_out"] for entry in alone.history] == [record.rows_left_out] * 2
    unharmed = train(planned(whole, model), damaged(whole), checkpoints="last")
    assert digest(unharmed) != digest(alone) and "rows_left_out" not in unharmed.history[0]
    assert digest(unharmed) == digest(train(record_of(whole, model), damaged(whole), checkpoints="last"))


@pytest.mark.parametrize("model", MODELS)
def test_a_stopped_run_continues_to_the_same_bits_though_the_objects_were_mended(
    whole: MemoryStore, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = record_of(whole, model).dataset.name
    store = damaged(whole, name)
    record = planned(store, model, epochs=3)
    unbroken = train(record, damaged(whole, name), checkpoints="last")

    def stop_in_second_epoch(trainer: Trainer, epoch: int, writer: Any = None) -> dict[str, float]:
        if epoch == 1:
            raise StoppedError
        return train_epoch(trainer, epoch, writer)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(fit_module, "train_epoch", stop_in_second_epoch)
        train(record, store)
    store.objects.update(whole.objects)
    (again,) = looked_through(store, record)  # as `resume` does: what was found stays
    assert again == record
    assert digest(train(again, store)) == digest(unbroken)


def test_a_record_of_what_is_left_out_survives_the_store(whole: MemoryStore) -> None:
    record = planned(damaged(whole, "digits"), "cnn")
    assert RunRecord.model_validate_json(record.model_dump_json()) == record
    assert planned(whole, "cnn").left_out == ()
    assert planned(whole, "cnn", data={}).left_out is None


def test_the_arithmetic_counts_what_is_left(whole: MemoryStore) -> None:
    store = damaged(whole, "digits")
    record = planned(store, "cnn")
    _, arithmetic = describe(record, opened(store, "digits"))
    assert arithmetic.samples == 1438 - record.rows_left_out
    assert arithmetic.updates == 2 * arithmetic.steps_per_epoch


def test_without_leave_a_damaged_row_group_ends_the_run(whole: MemoryStore) -> None:
    store = damaged(whole, "digits")
    with pytest.raises(IntegrityError, match=r"row group \d of shard datasets/digits/.* must have SHA-256"):
        train(planned(store, "cnn", data={}), store)


def test_damage_that_comes_later_ends_the_run(whole: MemoryStore) -> None:
    record = planned(damaged(whole, "digits"), "cnn", data=SKIP | {"cache": "none"})
    with pytest.raises(IntegrityError, match=r"row group 5 of shard datasets/digits/.* must have SHA-256"):
        train(record, damaged(whole, "digits", groups=(5,)))


def test_too_much_damage_and_a_damaged_test_split_are_refused_before_any_step(whole: MemoryStore) -> None:
    store = damaged(whole, "digits", groups=(1, 2, 3))
    with pytest.raises(IntegrityError, match=r"data.damaged=skip must leave out at most 10 % of the training split"):
        planned(store, "cnn", data={"damaged": "skip"})
    with pytest.raises(IntegrityError, match=r"split test of .* must be whole even with data.damaged=skip"):
        planned(damaged(whole, "digits", split="test", groups=(0,)), "cnn")


def test_a_dataset_is_read_once_for_all_arms_of_a_sweep(whole: MemoryStore) -> None:
    store = damaged(whole, "digits")
    record = planned(store, "mlp").model_copy(update={"left_out": None})
    store.log.clear()
    found = looked_through(store, record, record.model_copy(update={"run": "other"}), record_of(store, "cnn"))
    groups = sum(
        len(shard.row_groups) for split in ("train", "test") for shard in opened(store, "digits").split(split).shards
    )
    assert store.count("read_range") <= groups + 4  # the damaged ones and two footers besides
    assert found[0].left_out == found[1].left_out != () and found[2].left_out is None


def test_replicates_that_train_together_leave_out_the_same(whole: MemoryStore) -> None:
    store = damaged(whole, "digits")
    records = [planned(store, "mlp", seed=seed).model_copy(update={"run": f"run-{seed}"}) for seed in (0, 1)]
    together = fit_together(records, store=store, world=World())  # type: ignore[arg-type]
    for found, record in zip(together, records, strict=True):
        assert isinstance(found, Trainer)
        alone = train(record, damaged(whole, "digits"), checkpoints="last")
        for epoch, other in zip(found.history, alone.history, strict=True):
            assert epoch["rows_left_out"] == other["rows_left_out"] == record.rows_left_out
            assert epoch["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


def test_each_shard_is_told_once(whole: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    record = planned(damaged(whole, "digits"), "cnn")
    warn_of_left_out([record, record.model_copy(update={"run": "other"})])
    (line,) = [entry.getMessage() for entry in caplog.records if entry.name == "orchestrator.driving.plan"]
    assert record.left_out is not None
    assert line == f"dataset digits {record.dataset.version}: left out {record.left_out[0].text}"


@pytest.mark.store
def test_flipped_bytes_and_a_cut_object_of_a_real_store_are_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_LEAST_GROUP_ROWS", 16)
    monkeypatch.setattr(layout, "SHARD_BYTES", 20_000)
    manifest = push(store, "sklearn:digits").manifest
    shards = manifest.splits["train"].shards
    keys = [f"datasets/digits/{manifest.version}/{shard.path}" for shard in shards]
    data = bytearray(store.read(keys[0]))
    data[shards[0].row_groups[1].offset + 3] ^= 1
    store.write(keys[0], bytes(data))
    store.write(keys[2], store.read(keys[2])[:100])
    store.delete([keys[3]])
    record = planned(store, "cnn", data={"damaged": "skip", "damaged_share": 0.9})
    assert [(one.shard, one.count == one.of_rows) for one in record.left_out or ()] == [
        (shards[0].path, False),
        (shards[2].path, True),
        (shards[3].path, True),
    ]
    trainer = train(record, store, checkpoints="last")
    assert [entry["rows_left_out"] for entry in trainer.history] == [record.rows_left_out] * 2
