"""The reader: batches equal what is stored, in the planned order, whatever the threads, the cache and the store do."""

import gc
import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake_store import MemoryStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster.errors import ConfigError, IntegrityError, NotFoundError, StoreUnavailableError
from models.features import (
    TARGET,
    AudioFeature,
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    ImageFeature,
    SeriesFeature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from models.pictures import decode_picture
from orchestrator.data.columns import SPARSE, Ragged, number_target, take
from orchestrator.data.dataset import Dataset, manifest_key, open_dataset
from orchestrator.data.manifest import SeriesTarget, Source
from orchestrator.data.push import push_prepared
from orchestrator.data.pushing import layout
from orchestrator.data.reading import reader as reader_module
from orchestrator.data.reading.reader import MicroBatch, Reader
from orchestrator.data.sources.prepared import Part, Prepared

SOURCE = Source(format="test", uri="test")
random = np.random.default_rng(0)


def pictures(train_rows: int = 1000, test_rows: int = 130) -> Prepared:
    def part(rows: int) -> Part:
        return Part.of(
            {
                "image": random.integers(0, 256, (rows, 3, 4, 5), np.uint8),
                TARGET: random.integers(0, 7, rows, np.int64),
            }
        )

    feature = ImageFeature(shape=(3, 4, 5), mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0))
    return Prepared(
        name="pictures",
        features={"image": feature},
        target=ClassTarget(classes=tuple("abcdefg")),
        splits={"train": part(train_rows), "test": part(test_rows)},
        source=SOURCE,
        keeps_order=True,
    )


def mixed_rows(rows: int = 300) -> Prepared:
    def part(rows: int) -> Part:
        return Part.of(
            {
                "numbers": random.normal(size=(rows, 2)).astype(np.float32),
                "city": random.integers(0, 3, rows).astype(np.int32),
                TARGET: random.normal(size=rows).astype(np.float32),
            }
        )

    train = part(rows)
    return Prepared(
        name="mixed",
        features={
            "numbers": VectorFeature(names=("x", "y"), mean=(0.0, 0.0), std=(1.0, 1.0)),
            "city": CategoricalFeature(vocabulary=("a", "b")),
        },
        target=number_target(train.columns[TARGET]),
        splits={"train": train, "test": part(20)},
        source=SOURCE,
        keeps_order=True,
    )


def series(rows: int = 200, *, context_rows: int = 20) -> Prepared:
    values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    test = np.arange(1000, 1000 + 2 * (60 + context_rows), dtype=np.float32).reshape(-1, 2)
    return Prepared(
        name="series",
        features={"series": SeriesFeature(channels=("a", "b"), mean=(0.0, 0.0), std=(1.0, 1.0))},
        target=SeriesTarget(),
        splits={"train": Part.of({"series": values}), "test": Part.of({"series": test}, context_rows=context_rows)},
        source=SOURCE,
        keeps_order=True,
    )


def ragged(rows: int = 300) -> Prepared:
    """Texts, sounds and sparse rows of 0 to 12 values each."""

    def part(rows: int) -> Part:
        lengths = random.integers(0, 13, (3, rows))
        sparse = [np.zeros(n, SPARSE) for n in lengths[2]]
        for row in sparse:
            row["column"], row["value"] = random.integers(0, 20, len(row)), random.normal(size=len(row))
        return Part.of(
            {
                "words": Ragged.of([random.integers(1, 22, n) for n in lengths[0]], dtype=np.int32),
                "sound": Ragged.of([random.integers(-32768, 32768, n) for n in lengths[1]], dtype=np.int16),
                "row": Ragged.of(sparse, dtype=SPARSE),
                TARGET: random.integers(0, 2, rows, np.int64),
            }
        )

    return Prepared(
        name="ragged",
        features={
            "words": TextFeature(vocabulary=tuple("abcdefghijklmnopqrst"), max_tokens=12),
            "sound": AudioFeature(sample_rate=8000, max_samples=12),
            "row": SparseFeature(columns=20),
        },
        target=ClassTarget(classes=("no", "yes")),
        splits={"train": part(rows), "test": part(40)},
        source=SOURCE,
        keeps_order=True,
    )


def picture_files(rows: int = 60, *, boxes: bool = False) -> Prepared:
    """JPEG and PNG files of different sizes, with a class or with 0 to 3 boxes."""

    def file(row: int) -> np.ndarray:
        width, height = random.integers(8, 40, 2)
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, format="PNG" if row % 2 else "JPEG")
        return np.frombuffer(content.getvalue(), np.uint8)

    def part(rows: int) -> Part:
        found = Ragged.of([random.random((n % 4, 5)) for n in range(rows)], dtype=np.float32, width=(5,))
        return Part.of(
            {
                "image": Ragged.of([file(row) for row in range(rows)], dtype=np.uint8),
                TARGET: found if boxes else random.integers(0, 2, rows, np.int64),
            }
        )

    return Prepared(
        name="files",
        features={"image": ImageFeature(encoding="file", shape=(3, 16, 16), mean=(), std=())},
        target=BoxesTarget(classes=("no", "yes")) if boxes else ClassTarget(classes=("no", "yes")),
        splits={"train": part(rows), "test": part(9)},
        source=SOURCE,
        keeps_order=True,
    )


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_LEAST_GROUP_ROWS", 16)
    monkeypatch.setattr(layout, "SHARD_BYTES", 8000)


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith(("batches-ahead", "row-groups", "pictures")):
            thread.join(timeout=10)
            assert not thread.is_alive()


def pushed(prepared: Prepared, store: MemoryStore | None = None, **options) -> Dataset:
    store = store or MemoryStore()
    push_prepared(store, prepared, **options)
    return open_dataset(store, prepared.name)


def make_reader(
    dataset: Dataset, *, window_rows: int = 100, lookback: int | None = None, horizon: int | None = None, **options
) -> Reader:
    """Return a reader whose windows hold about as many rows, which are far smaller than in real data."""
    reader = Reader(dataset, dataset.signature(lookback=lookback, horizon=horizon), **options)
    split = dataset.split("train")
    reader._shuffle_bytes = sum(shard.bytes for shard in split.shards) / split.rows * (window_rows + 0.5)
    return reader


def train(
    dataset: Dataset,
    *,
    workers: int = 1,
    logical_workers: int = 4,
    start_step: int = 0,
    plan: dict | None = None,
    **options,
) -> list[list[MicroBatch]]:
    """Return the micro-batches of an epoch, a list per step, as `workers` readers together give them."""
    readers = [make_reader(dataset, **options) for _ in range(workers)]
    order = readers[0].plan(**{"logical_workers": logical_workers, **PLAN, **(plan or {})})
    each = logical_workers // workers
    streams = [
        reader.train_batches(order, logical_workers=range(w * each, (w + 1) * each), start_step=start_step)
        for w, reader in enumerate(readers)
    ]
    return [[batch for part in step for batch in part] for step in zip(*streams, strict=True)]


PLAN = {"seed": 1, "epoch": 0, "batch_size": 32, "drop_last": False}


def assert_equal(steps: list[list[MicroBatch]], others: list[list[MicroBatch]]) -> None:
    assert len(steps) == len(others)
    for step, other in zip(steps, others, strict=True):
        for batch, same in zip(step, other, strict=True):
            assert batch.sample_ids.tolist() == same.sample_ids.tolist()
            for name, tensor in batch.tensors.items():
                assert torch.equal(tensor, same.tensors[name])


@pytest.mark.parametrize("prepared", [pictures(), mixed_rows()], ids=["pictures", "mixed rows"])
def test_every_sample_of_an_epoch_equals_the_pushed_one(prepared):
    steps = train(pushed(prepared))
    columns = prepared.splits["train"].columns
    seen = []
    for batch in (batch for step in steps for batch in step):
        seen += batch.sample_ids.tolist()
        for name, tensor in batch.tensors.items():
            expected = take(columns[name], batch.sample_ids)
            assert np.array_equal(tensor.numpy(), expected), name
    assert sorted(seen) == list(range(prepared.splits["train"].rows))


def test_tensors_have_the_types_and_shapes_of_the_batch_contract():
    (first, *_), *_ = train(pushed(mixed_rows()))
    assert {name: (tuple(t.shape), t.dtype) for name, t in first.tensors.items()} == {
        "numbers": ((8, 2), torch.float32),
        "city": ((8,), torch.int64),
        TARGET: ((8,), torch.float32),
    }
    (first, *_), *_ = train(pushed(pictures()))
    assert first.tensors["image"].dtype == torch.uint8
    assert first.tensors["image"].shape == (8, 3, 4, 5)
    assert first.tensors[TARGET].dtype == torch.int64


def test_any_parquet_reader_can_read_the_shards():
    store, prepared = MemoryStore(), pictures()
    dataset = pushed(prepared, store)
    shards = dataset.manifest.splits["train"].shards
    assert len(shards) > 2
    tables = [
        pq.read_table(pa.BufferReader(store.objects[f"datasets/pictures/{dataset.manifest.version}/{s.path}"]))
        for s in shards
    ]
    table = pa.concat_tables(tables)
    assert table.column(TARGET).to_pylist() == prepared.splits["train"].columns[TARGET].tolist()
    assert table.column("image")[17].as_py() == prepared.splits["train"].columns["image"][17].tobytes()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_batches_are_the_same_for_every_number_of_workers(workers):
    dataset = pushed(pictures(train_rows=333))
    assert_equal(train(dataset, workers=workers), train(dataset, workers=1))


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_the_batches_do_not_depend_on_the_cache_nor_on_what_was_read_before(cache):
    reader = make_reader(pushed(pictures()), window_rows=50, cache=cache)
    for epoch in (0, 1, 0):
        plan = reader.plan(logical_workers=2, **PLAN | {"epoch": epoch, "drop_last": True})
        again = list(reader.train_batches(plan, logical_workers=range(2)))
        fresh = make_reader(reader.dataset, window_rows=50, cache="none")
        assert_equal(again, list(fresh.train_batches(plan, logical_workers=range(2))))


DATA = {"pictures": pictures(103), "mixed rows": mixed_rows(103), "ragged": ragged(103), "series": series(100)}
DATASETS = dict.fromkeys(DATA)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_depends_on_nothing_but_the_plan(data, monkeypatch):
    """Not on workers, prefetch depth, threads, cache or the step at which a run goes on, with another worker count."""
    name = data.draw(st.sampled_from(sorted(DATA)))
    dataset = DATASETS[name] = DATASETS[name] or pushed(DATA[name])
    logical_workers = data.draw(st.sampled_from([1, 2, 4, 6]))
    options = {
        "logical_workers": logical_workers,
        "window_rows": data.draw(st.integers(1, 250)),
        "plan": {
            "seed": data.draw(st.integers(0, 3)),
            "epoch": data.draw(st.integers(0, 3)),
            "batch_size": logical_workers * data.draw(st.integers(1, 12)),
            "drop_last": data.draw(st.booleans()),
            "bucket_batches": data.draw(st.integers(1, 4)),
        },
        **({"lookback": 7, "horizon": 3} if name == "series" else {}),
    }
    expected = train(dataset, cache="none", **options)
    ids = [i for step in expected for batch in step for i in batch.sample_ids.tolist()]
    samples = 91 if name == "series" else 103
    dropped = samples % options["plan"]["batch_size"] if options["plan"]["drop_last"] else 0
    assert len(ids) == len(set(ids)) == samples - dropped
    assert {*ids} <= {*range(samples)}

    divisors = [w for w in range(1, logical_workers + 1) if logical_workers % w == 0]
    start = data.draw(st.integers(0, max(0, len(expected) - 1)))
    monkeypatch.setattr(reader_module, "_BATCHES_AHEAD", data.draw(st.integers(1, 6)))
    monkeypatch.setattr(reader_module, "_FETCH_THREADS", data.draw(st.integers(1, 6)))
    workers, cache = data.draw(st.sampled_from(divisors)), data.draw(st.sampled_from(["none", "memory", "disk"]))
    if expected:
        assert_equal(train(dataset, workers=workers, cache=cache, start_step=start, **options), expected[start:])


def test_the_second_epoch_reads_nothing_when_the_cache_holds_the_split():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    row_groups = sum(len(shard.row_groups) for shard in dataset.manifest.splits["train"].shards)
    shards = len(dataset.manifest.splits["train"].shards)
    train(dataset, logical_workers=1)
    assert store.count("read_range") == row_groups + shards  # each row group and each footer once
    train(replace(dataset, _footers={}), logical_workers=1, plan={"epoch": 1})
    assert store.count("read_range") == row_groups + shards


def test_resuming_at_a_step_gives_the_tail_and_reads_no_row_group_of_the_head():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    whole = train(dataset, cache="none")
    before = store.count("read_range")
    tail = train(replace(dataset, _footers={}), start_step=len(whole) - 3, cache="none")
    assert_equal(tail, whole[-3:])
    assert store.count("read_range") - before < before / 2


def test_rows_of_different_lengths_are_padded_to_the_longest_of_the_batch():
    prepared = ragged()
    columns = prepared.splits["train"].columns
    for batch in (batch for step in train(pushed(prepared)) for batch in step):
        for name, scale in (("words", 1), ("sound", 32768)):
            tensor, lengths = batch.tensors[name], batch.tensors[name + ".length"]
            assert tensor.shape == (batch.size, max(1, int(lengths.max())))
            for row, length, i in zip(tensor, lengths, batch.sample_ids, strict=True):
                assert np.array_equal(row[:length].double() * scale, columns[name][int(i)])
                assert not row[length:].any()
        for indices, values, i in zip(batch.tensors["row"], batch.tensors["row.value"], batch.sample_ids, strict=True):
            stored = columns["row"][int(i)]
            assert np.array_equal(indices[: len(stored)] - 1, stored["column"])
            assert np.array_equal(values[: len(stored)], stored["value"])
            assert not indices[len(stored) :].any()
    assert batch.tensors["words"].dtype == batch.tensors["row"].dtype == torch.int64
    assert batch.tensors["sound"].dtype == batch.tensors["row.value"].dtype == torch.float32


def test_batches_of_text_need_little_padding():
    prepared = ragged()
    splits = {
        split: Part.of({name: part.columns[name] for name in ("words", TARGET)})
        for split, part in prepared.splits.items()
    }
    texts = replace(prepared, features={"words": prepared.features["words"]}, splits=splits)

    def padding(bucket_batches: int) -> float:
        steps = train(pushed(texts, leakage="keep"), plan={"bucket_batches": bucket_batches}, window_rows=300)
        batches = [batch.tensors for step in steps for batch in step]
        return sum(b["words"].numel() for b in batches) / sum(int(b["words.length"].sum()) for b in batches)

    assert padding(1) > 1.6
    assert padding(8) < 1.3


def test_memory_of_a_window_is_used_again_when_no_batch_shows_it_and_not_before():
    reader = make_reader(pushed(pictures()), window_rows=100)
    plan = reader.plan(logical_workers=1, **PLAN)
    kept = [batch for step in reader.train_batches(plan, logical_workers=[0]) for batch in step]
    columns = pictures_of(reader)
    for batch in kept:
        assert np.array_equal(batch.tensors["image"], columns[batch.sample_ids])
    gc.collect()
    assert reader._buffers is not None
    free_while_kept = len(reader._buffers._free)
    del kept, batch
    gc.collect()
    buffers = len(reader._buffers._free)
    assert buffers > free_while_kept + 10
    for step in reader.train_batches(plan, logical_workers=[0]):
        for batch in step:
            assert np.array_equal(batch.tensors["image"], columns[batch.sample_ids])
    del step, batch
    gc.collect()
    assert len(reader._buffers._free) == buffers  # no new memory


def pictures_of(reader: Reader) -> np.ndarray:
    shards = reader.dataset.split("train").shards
    groups = [reader.dataset.read_row_group(shard, i) for shard in shards for i in range(len(shard.row_groups))]
    return np.concatenate([columns["image"] for columns in groups])


@pytest.mark.parametrize("boxes", [False, True], ids=["cropped", "with boxes"])
def test_picture_files_are_decoded_to_the_size_that_a_model_reads(boxes):
    prepared = picture_files(boxes=boxes)
    columns, dataset = prepared.splits["train"].columns, pushed(prepared)
    feature = dataset.manifest.features["image"]
    assert all(std > 0 for std in feature.std)
    for batch in (batch for step in train(dataset) for batch in step):
        assert batch.tensors["image"].shape == (batch.size, 3, 16, 16)
        for picture, i in zip(batch.tensors["image"], batch.sample_ids, strict=True):
            data = columns["image"][int(i)].tobytes()
            assert np.array_equal(picture, decode_picture(data, (3, 16, 16), fit="stretch" if boxes else "crop"))
        if boxes:
            for rows, length, i in zip(
                batch.tensors[TARGET], batch.tensors[TARGET + ".length"], batch.sample_ids, strict=True
            ):
                assert np.array_equal(rows[:length], columns[TARGET][int(i)])
                assert (rows[length:] == -1).all()


def test_an_empty_micro_batch_has_tensors_of_no_samples():
    (last,) = train(pushed(pictures(train_rows=3)))
    assert sorted(batch.size for batch in last) == [0, 1, 1, 1]
    assert all(batch.tensors["image"].shape == (batch.size, 3, 4, 5) for batch in last)


@pytest.mark.parametrize("workers", [1, 2, 3, 20])
def test_evaluation_has_every_sample_once_in_batches_that_do_not_depend_on_the_workers(workers):
    prepared = pictures()
    reader = make_reader(pushed(prepared))
    batches = {}
    for worker in range(workers):
        for number, batch in reader.evaluate_batches("test", worker=worker, workers=workers, batch_size=16):
            assert number not in batches
            batches[number] = batch.sample_ids.tolist()
    assert [i for number in sorted(batches) for i in batches[number]] == list(range(130))
    assert [len(batches[number]) for number in sorted(batches)] == [16] * 8 + [2]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(60, 150), st.integers(1, 40), st.integers(0, 3))
def test_windows_of_a_series_equal_slices_of_it(lookback, horizon, rows, context_rows, epoch):
    prepared = series(rows, context_rows=context_rows)
    dataset = pushed(prepared)
    values = prepared.splits["train"].columns["series"]
    seen = []
    for step in train(dataset, lookback=lookback, horizon=horizon, plan={"epoch": epoch}, window_rows=40):
        for batch in step:
            for i, window, target in zip(batch.sample_ids, batch.tensors["series"], batch.tensors[TARGET], strict=True):
                seen.append(int(i))
                assert np.array_equal(window, values[i : i + lookback])
                assert np.array_equal(target, values[i + lookback : i + lookback + horizon])
    assert sorted(seen) == list(range(rows - lookback - horizon + 1))


@pytest.mark.parametrize(("lookback", "first_row"), [(8, 12), (20, 0), (30, 0)])
def test_the_first_forecast_of_a_later_split_begins_where_the_split_does(lookback, first_row):
    prepared = series(context_rows=20)
    dataset = pushed(prepared)
    values = prepared.splits["test"].columns["series"]
    reader = make_reader(dataset, lookback=lookback, horizon=5)
    batches = [b for _, b in reader.evaluate_batches("test", worker=0, workers=1, batch_size=7)]
    targets = torch.cat([batch.tensors[TARGET] for batch in batches])
    assert np.array_equal(targets[0], values[first_row + lookback : first_row + lookback + 5])
    assert np.array_equal(targets[-1], values[-5:])
    assert len(targets) == reader.num_samples("test") == 80 - first_row - lookback - 5 + 1


def test_a_flipped_byte_in_a_shard_is_found_after_one_more_try():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    shard = dataset.manifest.splits["train"].shards[1]
    key = f"datasets/pictures/{dataset.manifest.version}/{shard.path}"
    broken = bytearray(store.objects[key])
    broken[shard.row_groups[2].offset + 100] ^= 1
    store.objects[key] = bytes(broken)
    reads = []
    store.before = lambda operation, read: reads.append(read) if operation == "read_range" else None
    with pytest.raises(IntegrityError, match=rf"row group 2 of shard {key} must have SHA-256 .* twice.*--repair"):
        train(dataset)
    groups = len(shard.row_groups)
    assert reads.count(key) <= groups + 2  # every row group and the footer once, the damaged one twice


def test_a_damaged_footer_is_found():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    shard = dataset.manifest.splits["train"].shards[0]
    key = f"datasets/pictures/{dataset.manifest.version}/{shard.path}"
    broken = bytearray(store.objects[key])
    broken[-20] ^= 1
    store.objects[key] = bytes(broken)
    with pytest.raises(IntegrityError, match=f"footer of shard {key} must have SHA-256"):
        train(dataset)


def test_a_truncated_shard_is_found():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    shard = dataset.manifest.splits["train"].shards[0]
    key = f"datasets/pictures/{dataset.manifest.version}/{shard.path}"
    store.objects[key] = store.objects[key][: shard.bytes // 2]
    with pytest.raises(IntegrityError, match=f"of shard {key} must have SHA-256"):
        train(dataset)


def test_a_byte_damaged_on_its_way_is_read_again():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    expected = train(dataset, cache="none")
    damaged = []

    def damage_each_first_read(key: str, data: bytes) -> bytes:
        if data in damaged:
            return data
        damaged.append(data)
        return data[:-1] + bytes([data[-1] ^ 1])

    store.damage = damage_each_first_read
    assert_equal(train(dataset, cache="none"), expected)
    assert damaged


def test_an_error_of_the_store_reaches_the_consumer():
    store = MemoryStore()
    dataset = pushed(pictures(), store)

    def fail(operation: str, key: str) -> None:
        if operation == "read_range":
            raise StoreUnavailableError("the store must answer, got nothing.")

    store.before = fail
    with pytest.raises(StoreUnavailableError, match="must answer"):
        train(dataset)


def test_the_reader_stays_a_bounded_way_ahead_of_its_consumer():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    reader = make_reader(dataset, window_rows=32, cache="none")
    plan = reader.plan(logical_workers=1, **PLAN | {"batch_size": 8})
    row_groups = sum(len(shard.row_groups) for shard in dataset.manifest.splits["train"].shards)
    with reader.train_batches(plan, logical_workers=[0]) as stream:
        next(stream)
    assert store.count("read_range") < row_groups / 2


def test_an_iterator_that_is_dropped_stops_its_threads():
    dataset = pushed(pictures())
    reader = make_reader(dataset, window_rows=32, cache="none")
    plan = reader.plan(logical_workers=1, **PLAN | {"batch_size": 8})
    stream = reader.train_batches(plan, logical_workers=[0])
    next(stream)
    thread = stream._thread
    assert thread.is_alive()
    del stream
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_closed_iterator_ends():
    dataset = pushed(pictures())
    reader = make_reader(dataset, cache="none")
    stream = reader.evaluate_batches("test", worker=0, workers=1, batch_size=8)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


def test_waiting_for_the_store_is_measured():
    store = MemoryStore()
    dataset = pushed(pictures(), store)
    release = threading.Event()
    store.before = lambda operation, key: release.wait() and None
    reader = make_reader(dataset, cache="none")
    stream = reader.evaluate_batches("test", worker=0, workers=1, batch_size=8)
    threading.Timer(0.2, release.set).start()
    assert len(list(stream)) == 17
    assert reader.wait_s > 0.1


def test_numpy_and_torch_global_random_states_are_left_alone():
    dataset = pushed(pictures())
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    train(dataset)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_newest_version_is_opened_unless_one_is_named():
    store = MemoryStore()
    first = pushed(pictures(), store).manifest.version
    second = pushed(pictures(), store).manifest.version
    assert first != second
    assert open_dataset(store, "pictures").manifest.version == second
    assert open_dataset(store, "pictures", first).manifest.version == first


def test_a_dataset_that_is_not_there_is_named_with_those_that_are():
    store = MemoryStore()
    with pytest.raises(NotFoundError, match=r"got 'cats'\. There are no datasets yet\. Make one"):
        open_dataset(store, "cats")
    version = pushed(pictures(), store).manifest.version
    with pytest.raises(NotFoundError, match=r"got 'cats'\. Datasets there: pictures\."):
        open_dataset(store, "cats")
    with pytest.raises(NotFoundError, match=f"of dataset pictures, got 'v1'. Versions there: {version}."):
        open_dataset(store, "pictures", "v1")
    with pytest.raises(NotFoundError, match="split of dataset pictures must be one of train, test, got 'dev'"):
        open_dataset(store, "pictures").split("dev")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"format_version": 1', b'"format_version": 2', "error at format_version: Input should be 1"),
        (b'"rows": 1000', b'"rows": 999', "rows of a split must be the sum of its shards, got 999"),
        (b'"path": "', b'"path": "../', "error at splits.train.shards.0.path"),
        (b"{", b"[", "got Invalid JSON: expected"),
        (b'"name": "pictures"', b'"name": "cats"', "must describe pictures .* got cats"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(old, new, message):
    store = MemoryStore()
    key = manifest_key("pictures", pushed(pictures(), store).manifest.version)
    assert old in store.objects[key]
    store.objects[key] = store.objects[key].replace(old, new, 1)
    with pytest.raises(IntegrityError, match=message):
        open_dataset(store, "pictures")


@pytest.mark.parametrize(
    ("prepared", "lookback", "horizon", "message"),
    [
        (pictures(), 8, 4, "must be left out for dataset pictures, which is not a series, got 8 and 4"),
        (series(), None, None, "must be given for dataset series, which is a series, got None and None"),
        (series(), 70, 20, "must be at most the 80 rows of split test .* got 70 \\+ 20"),
    ],
)
def test_a_signature_that_does_not_fit_the_data_is_refused(prepared, lookback, horizon, message):
    with pytest.raises(ConfigError, match=message):
        pushed(prepared).signature(lookback=lookback, horizon=horizon)


@pytest.mark.store
def test_a_real_s3_server_gives_the_same_batches(store):
    prepared = pictures()
    push_prepared(store, prepared)
    assert_equal(train(open_dataset(store, "pictures"), workers=2), train(pushed(prepared)))
    assert not push_prepared(store, prepared).changed
