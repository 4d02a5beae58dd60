"""Damaged rows are found before a run, named, and left out; all others are read, in the same order for any workers."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.errors import ConfigError, IntegrityError, StoreUnavailableError
from models.features import TARGET, ImageFeature
from models.records import LeftOut
from orchestrator.data.columns import Ragged, take
from orchestrator.data.dataset import Dataset
from orchestrator.data.manifest import Shard
from orchestrator.data.order import plan_epoch
from orchestrator.data.reading.cache import open_cache
from orchestrator.data.reading.reader import MicroBatch
from orchestrator.data.reading.survey import require_few, survey
from tests.fake_store import MemoryStore
from tests.test_data_reading_reader import (
    PLAN,
    assert_equal,
    make_reader,
    own_cache,  # noqa: F401
    picture_files,
    pictures,
    pushed,
    ragged,
    series,
    small_row_groups,  # noqa: F401
    train,
)

WHOLE_SHARD: tuple[int, ...] = ()


def damaged(prepared, *places: tuple[int, tuple[int, ...]], split: str = "train") -> Dataset:
    """Push, and flip a byte of each of the row groups (shard, groups); of a shard without any, remove the object."""
    store = MemoryStore()
    dataset = pushed(prepared, store)
    for number, groups in places:
        key = key_of(dataset, shard := dataset.split(split).shards[number])
        if groups == WHOLE_SHARD:
            del store.objects[key]
        for group in groups:
            flip(store, key, shard.row_groups[group].offset + shard.row_groups[group].bytes // 2)
    return dataset


def key_of(dataset: Dataset, shard: Shard) -> str:
    return f"datasets/{dataset.manifest.name}/{dataset.manifest.version}/{shard.path}"


def flip(store: MemoryStore, key: str, place: int) -> None:
    data = bytearray(store.objects[key])
    data[place] ^= 1
    store.objects[key] = bytes(data)


def look(dataset: Dataset, *splits: str) -> tuple[LeftOut, ...]:
    return survey(dataset, splits=splits or ("train",), cache=None)


def batches(steps: list[list[MicroBatch]]) -> list[MicroBatch]:
    return [batch for step in steps for batch in step]


def kept_rows(dataset: Dataset, *places: tuple[int, tuple[int, ...]]) -> np.ndarray:
    """Numbers of the rows of the training split that are in none of the places."""
    groups = [(n, g, group.rows) for n, s in enumerate(dataset.split("train").shards) for g, group in groups_of(s)]
    gone = [
        any(n == shard and (g in chosen or chosen == WHOLE_SHARD) for shard, chosen in places) for n, g, _ in groups
    ]
    return np.flatnonzero(~np.repeat(gone, [rows for _, _, rows in groups]))


def groups_of(shard: Shard) -> list:
    return list(enumerate(shard.row_groups))


PLACES = ((0, (1,)), (1, (0, 2)), (3, WHOLE_SHARD))


def test_nothing_is_left_out_of_what_is_whole():
    dataset = pushed(pictures())
    assert look(dataset, "train", "test") == ()
    assert_equal(train(dataset, left_out=()), train(dataset))


def test_flipped_bytes_and_missing_objects_are_found_and_named():
    dataset = damaged(pictures(), *PLACES)
    first, second, third = look(dataset, "train", "test")
    shards = dataset.split("train").shards
    assert [one.shard for one in (first, second, third)] == [shards[n].path for n in (0, 1, 3)]
    assert (first.row_groups, second.row_groups) == ((1,), (0, 2))
    assert third.row_groups == tuple(range(len(shards[3].row_groups)))
    assert third.count == third.of_rows == shards[3].rows
    assert second.count == sum(shards[1].row_groups[group].rows for group in (0, 2))
    assert "row group 1 of shard datasets/pictures/" in first.reason and "must have SHA-256" in first.reason
    assert "must exist" in third.reason
    assert second.text.startswith(
        f"{second.count} of {shards[1].rows} rows of shard {shards[1].path} (row groups 0, 2)"
    )


@pytest.mark.parametrize("cut", [0.5, 0.0], ids=["half", "empty"])
def test_a_truncated_shard_and_a_damaged_footer_are_found(cut: float):
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    shards = dataset.split("train").shards
    keys = [key_of(dataset, shard) for shard in shards]
    store.objects[keys[0]] = store.objects[keys[0]][: int(shards[0].bytes * cut)]
    flip(store, keys[2], shards[2].bytes - 20)
    truncated, footer = look(dataset)
    # without its footer no row group of a shard can be read
    assert truncated.count == shards[0].rows and footer.count == shards[2].rows
    assert "footer of shard" in footer.reason


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("prepared", [pictures(), ragged()], ids=["pictures", "ragged"])
def test_all_other_rows_are_read_once_with_their_values_by_any_number_of_workers(prepared, workers: int):
    places = ((0, (1,)),) if prepared.name == "ragged" else PLACES
    dataset = damaged(prepared, *places)
    kept = kept_rows(dataset, *places)
    left_out, plan = look(dataset), {"bucket_batches": 3 if prepared.name == "ragged" else 1}
    steps = train(dataset, workers=workers, left_out=left_out, plan=plan)
    assert_equal(steps, train(dataset, workers=1, left_out=left_out, plan=plan))
    assert_equal(steps[3:], train(dataset, workers=workers, left_out=left_out, plan=plan, start_step=3))
    ids = np.concatenate([batch.sample_ids for batch in batches(steps)])
    assert sorted(ids) == list(range(len(kept))) and len(kept) < prepared.splits["train"].rows
    columns = prepared.splits["train"].columns
    for batch in batches(steps):
        assert np.array_equal(batch.tensors[TARGET].numpy(), take(columns[TARGET], kept[batch.sample_ids]))
        if prepared.name == "pictures":
            assert np.array_equal(batch.tensors["image"].numpy(), columns["image"][kept[batch.sample_ids]])


def test_the_order_is_that_of_a_manifest_without_the_row_groups():
    dataset = damaged(pictures(), *PLACES)
    reader = make_reader(dataset, left_out=look(dataset))
    plan = reader.plan(logical_workers=4, **PLAN)
    rows = [
        0 if any(n == shard and (g in chosen or chosen == WHOLE_SHARD) for shard, chosen in PLACES) else group.rows
        for n, shard_record in enumerate(dataset.split("train").shards)
        for g, group in groups_of(shard_record)
    ]
    expected = plan_epoch(rows, logical_workers=4, shuffle_rows=100, **PLAN)
    assert plan.num_steps == expected.num_steps < make_reader(dataset).plan(logical_workers=4, **PLAN).num_steps
    for step in range(plan.num_steps):
        assert plan.sample_ids(2, step).tolist() == expected.sample_ids(2, step).tolist()


def test_no_window_of_a_series_holds_a_row_that_is_left_out():
    prepared = series(200)
    dataset = damaged(prepared, (0, (3,)), (0, (7,)))
    left_out = look(dataset)
    assert [one.row_groups for one in left_out] == [(3, 7)]
    lookback, horizon = 8, 3
    values = prepared.splits["train"].columns["series"]
    kept = set(kept_rows(dataset, (0, (3, 7))).tolist())
    starts = [row for row in range(len(values) - lookback - horizon + 1) if {*range(row, row + 11)} <= kept]
    steps = train(dataset, left_out=left_out, lookback=lookback, horizon=horizon)
    seen = []
    for batch in batches(steps):
        for i, window, target in zip(batch.sample_ids, batch.tensors["series"], batch.tensors[TARGET], strict=True):
            seen.append(int(i))
            assert np.array_equal(window, values[starts[i] : starts[i] + lookback])
            assert np.array_equal(target, values[starts[i] + lookback : starts[i] + lookback + horizon])
    assert sorted(seen) == list(range(len(starts)))


def cut_pictures(*cut: int):
    """Picture files of which some were cut before they were pushed, so that their bytes are those of the manifest."""
    prepared = picture_files()
    feature = ImageFeature(encoding="file", shape=(3, 16, 16), mean=(1.0,) * 3, std=(1.0,) * 3)
    part = prepared.splits["train"]
    files = [part.columns["image"][row] for row in range(part.rows)]
    for row in cut:
        files[row] = files[row][:60]
    columns = part.columns | {"image": Ragged.of(files, dtype=np.uint8)}
    train_part = type(part).of(columns)
    return replace(prepared, features={"image": feature}, splits=prepared.splits | {"train": train_part})


def test_stored_pictures_that_cannot_be_decoded_are_left_out_one_by_one():
    prepared = cut_pictures(5, 6, 33)
    dataset = pushed(prepared)
    with pytest.raises(ValueError, match="damaged"):
        train(dataset)
    left_out = look(dataset)
    assert sum(one.count for one in left_out) == 3 and not any(one.row_groups for one in left_out)
    assert "image must be a whole picture, got a damaged one" in left_out[0].reason
    kept = np.setdiff1d(np.arange(60), [5, 6, 33])
    steps = train(dataset, left_out=left_out)
    assert sorted(np.concatenate([b.sample_ids for b in batches(steps)])) == list(range(57))
    labels = prepared.splits["train"].columns[TARGET][kept]
    assert all(np.array_equal(b.tensors[TARGET].numpy(), labels[b.sample_ids]) for b in batches(steps))


def test_a_copy_in_the_cache_does_not_hide_damage_and_what_is_whole_is_kept_there():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    expected = train(dataset, cache="disk")  # fills the cache
    shard = dataset.split("train").shards[0]
    flip(store, key_of(dataset, shard), shard.row_groups[1].offset)
    (left_out,) = survey(dataset, splits=("train",), cache=open_cache("disk", 64))
    assert left_out.row_groups == (1,)
    store.log.clear()
    steps = train(dataset, cache="disk", left_out=(left_out,))
    assert store.count("read_range") == 0
    assert len(steps) < len(expected)


def test_a_store_that_does_not_answer_is_not_damage():
    store = MemoryStore()
    dataset = pushed(pictures(), store)

    def fail(operation: str, key: str) -> None:
        raise StoreUnavailableError(f"{operation} {key} must answer.")

    store.before = fail
    with pytest.raises(StoreUnavailableError):
        look(dataset)


def test_a_byte_damaged_on_its_way_is_not_damage():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    seen: set[bytes] = set()

    def damage_each_first_read(key: str, data: bytes) -> bytes:
        is_new = data not in seen
        seen.add(data)
        return data[:-1] + bytes([data[-1] ^ 1]) if is_new else data

    store.damage = damage_each_first_read
    assert look(dataset) == ()


@pytest.mark.parametrize(
    ("split", "share", "message"),
    [
        ("train", 0.095, "data.damaged=skip must leave out at most 9.5 % of the training split of .*"),
        ("test", 0.9, "split test of datasets/.* must be whole even with data.damaged=skip.*"),
    ],
)
def test_too_much_damage_and_damage_where_models_are_judged_are_refused(split: str, share: float, message: str):
    dataset = damaged(pictures(), (0, (0, 1)), (1, (0,)), split=split)
    named = rf"rows damaged: \d+ of \d+ rows of shard {split}-00000-of-\d+.parquet \(row groups 0, 1\): .*--repair"
    with pytest.raises(IntegrityError, match=f"{message}.*{named}"):
        require_few(dataset, look(dataset, "train", "test"), most_share=share)


def test_damage_up_to_the_share_is_passed_over():
    dataset = damaged(pictures(), (0, (0, 1)), (1, (0,)))
    require_few(dataset, look(dataset), most_share=0.096)


def test_a_record_that_leaves_nothing_is_refused():
    dataset = damaged(pictures(), *((n, WHOLE_SHARD) for n in range(4)))
    everything = tuple(
        LeftOut(split="train", shard=s.path, row_groups=tuple(range(99)), count=1, of_rows=1, reason="")
        for s in dataset.split("train").shards
    )
    with pytest.raises(ConfigError, match="at least one sample"):
        make_reader(dataset, left_out=everything).plan(logical_workers=4, **PLAN)
