"""Pushing: the content is the version, an interrupted push hurts nobody, and repeating it completes it."""

from dataclasses import replace

import numpy as np
import pytest
from fake_store import MemoryStore

from cluster.errors import ConfigError, NotFoundError, StoreUnavailableError
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.data.columns import image_statistics, row_statistics
from orchestrator.data.manifest import Source
from orchestrator.data.push import content_version, ls, push, push_prepared, rows_per_group, show
from orchestrator.data.reader import manifest_key, open_dataset
from orchestrator.data.shards import sha256
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Part, Prepared


def prepared(seed: int = 0, rows: int = 100) -> Prepared:
    random = np.random.default_rng(seed)
    splits = {
        split: Part.of(
            {
                "image": random.integers(0, 256, (rows, 1, 4, 4), np.uint8),
                TARGET: random.integers(0, 2, rows, np.int64),
            }
        )
        for split in ("train", "test")
    }
    mean, std = image_statistics(splits["train"].columns["image"])
    return Prepared(
        name="pictures",
        features={"image": ImageFeature(shape=(1, 4, 4), mean=mean, std=std)},
        target=ClassTarget(classes=("no", "yes")),
        splits=splits,
        source=Source(format="test", uri="test"),
    )


def test_the_same_content_pushed_twice_writes_nothing():
    store = MemoryStore()
    first = push_prepared(store, prepared())
    objects, writes = dict(store.objects), store.count("write")
    second = push_prepared(store, prepared())
    assert (first.changed, second.changed) == (True, False)
    assert second.manifest == first.manifest
    assert store.objects == objects
    assert store.count("write") == writes


def test_any_difference_in_content_is_another_version():
    base = prepared()
    pixel = prepared()
    pixel.splits["test"].columns["image"][3, 0, 2, 1] ^= 1
    label = prepared()
    label.splits["train"].columns[TARGET][5] ^= 1
    others = [
        base,
        pixel,
        label,
        prepared(rows=99),
        replace(base, target=ClassTarget(classes=("no", "maybe"))),
        replace(base, splits={"train": base.splits["train"], "validation": base.splits["test"]}),
        replace(base, splits={"train": base.splits["test"], "test": base.splits["train"]}),
    ]
    assert len({content_version(other) for other in others}) == len(others)


def test_name_source_and_time_are_no_content():
    base = prepared()
    moved = replace(base, name="other", source=Source(format="test", uri="elsewhere", licence="MIT"))
    assert content_version(moved) == content_version(base)


def test_the_version_of_known_content_is_pinned():
    columns = {"image": np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4), TARGET: np.array([0, 1, 1, 0])}
    known = replace(
        prepared(),
        features={"image": ImageFeature(shape=(1, 4, 4), mean=(0.0,), std=(1.0,))},
        splits={"train": Part.of(columns), "test": Part.of(columns)},
    )
    assert content_version(known) == "e09173809a02"


@pytest.mark.parametrize("failing_write", [1, 2, 3])
def test_an_interrupted_push_leaves_earlier_versions_readable_and_is_completed_by_repetition(failing_write):
    store = MemoryStore()
    old = push_prepared(store, prepared(seed=0)).manifest
    writes = 0

    def fail(operation: str, key: str) -> None:
        nonlocal writes
        writes += operation == "write"
        if operation == "write" and writes == failing_write:
            raise StoreUnavailableError("the store must answer, got nothing.")

    store.before = fail
    with pytest.raises(StoreUnavailableError):
        push_prepared(store, prepared(seed=1))
    assert open_dataset(store, "pictures").manifest == old
    assert [(s.version, s.versions) for s in ls(store)] == [(old.version, 1)]
    result = push_prepared(store, prepared(seed=1))
    assert result.changed
    assert open_dataset(store, "pictures").manifest == result.manifest != old


def test_a_first_push_that_was_interrupted_is_no_dataset():
    store = MemoryStore()
    result = push_prepared(store, prepared())
    store.delete([manifest_key("pictures", result.manifest.version)])
    assert ls(store) == []
    with pytest.raises(NotFoundError, match="There are no datasets yet"):
        open_dataset(store, "pictures")


def test_the_manifest_is_written_last():
    store = MemoryStore()
    push_prepared(store, prepared())
    keys = [key for operation, key in store.log if operation == "write"]
    assert [key.rsplit("/")[-1] for key in keys] == [
        "train-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
        "manifest.json",
    ]


def test_whoever_loses_a_race_for_the_same_content_gets_the_winners_manifest():
    store, winner = MemoryStore(), MemoryStore()
    theirs = push_prepared(winner, prepared()).manifest
    key = manifest_key("pictures", theirs.version)

    def they_finish_first(operation: str, written: str) -> None:
        if operation == "write" and written == key:
            store.objects[key] = winner.objects[key]

    store.before = they_finish_first
    ours = push_prepared(store, prepared())
    assert not ours.changed
    assert ours.manifest == theirs


def test_the_manifest_records_every_byte_range_and_its_sha256():
    store = MemoryStore()
    manifest = push_prepared(store, prepared(rows=5000)).manifest
    for split in manifest.splits.values():
        for shard in split.shards:
            data = store.objects[f"datasets/pictures/{manifest.version}/{shard.path}"]
            assert (len(data), sha256(data)) == (shard.bytes, shard.sha256)
            assert sha256(data[shard.footer_offset :]) == shard.footer_sha256
            end = 4  # after Parquet's magic
            for group in shard.row_groups:
                assert group.offset == end
                end += group.bytes
                assert sha256(data[group.offset : end]) == group.sha256
            assert end == shard.footer_offset


def test_row_groups_are_about_8_mib_but_several_even_of_small_data():
    def part(rows: int, row_bytes: int) -> Part:
        return Part.of({"image": np.broadcast_to(np.uint8(0), (rows, 1, 1, row_bytes))})

    assert rows_per_group(part(50_000, 3080)) == 2048
    assert rows_per_group(part(1438, 72)) == 1024
    assert rows_per_group(part(90_000, 12)) == 4096
    assert rows_per_group(part(25_000_000, 12)) == 524_288
    assert rows_per_group(part(100, 10 * 2**20)) == 1


def test_ls_shows_each_datasets_newest_version_and_show_any():
    store = MemoryStore()
    assert ls(store) == []
    old = push_prepared(store, prepared(seed=0)).manifest
    new = push_prepared(store, prepared(seed=1)).manifest
    push_prepared(store, prepared(), name="another")
    another, pictures = ls(store)
    assert (another.name, another.versions) == ("another", 1)
    assert (pictures.name, pictures.version, pictures.versions) == ("pictures", new.version, 2)
    assert pictures.rows == {"train": 100, "test": 100}
    assert (pictures.features, pictures.target) == ({"image": "image"}, "class")
    assert pictures.bytes == sum(
        len(data) for key, data in store.objects.items() if f"pictures/{new.version}" in key and "parquet" in key
    )
    assert show(store, "pictures") == new
    assert show(store, "pictures", old.version) == old


def test_progress_counts_up_to_all_rows():
    seen = []
    push_prepared(MemoryStore(), prepared(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(100, 200), (200, 200)]


def test_the_licence_that_a_person_gives_is_recorded():
    result = push(MemoryStore(), "sklearn:digits", licence="mine")
    assert result.manifest.source == Source(format="bundle", uri="sklearn:digits", licence="mine")


def test_a_name_that_cannot_be_part_of_a_key_is_refused():
    with pytest.raises(ConfigError, match=r"name of the dataset must be 1 to 63 .* got '\.\./x'"):
        push_prepared(MemoryStore(), prepared(), name="../x")


def test_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 7, 5), np.uint8)
    mean, std = image_statistics(images)
    np.testing.assert_allclose(mean, images.mean((0, 2, 3)))
    np.testing.assert_allclose(std, images.std((0, 2, 3)))
    rows = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    assert row_statistics(rows) == ((2.0, 5.0), (1.0, 1.0))  # a column that does not vary is not divided by 0


@pytest.mark.store
def test_a_bundled_dataset_survives_the_way_through_a_real_s3_server(store):
    first = push(store, "sklearn:digits", options=SourceOptions(seed=3))
    assert first.changed
    assert not push(store, "sklearn:digits", options=SourceOptions(seed=3)).changed
    assert [summary.version for summary in ls(store)] == [first.manifest.version]
    assert show(store, "digits") == first.manifest
