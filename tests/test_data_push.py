"""Pushing: the content is the version, an interrupted push hurts nobody, and repeating it completes it."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_store import MemoryStore
from numbered import Numbers
from PIL import Image

from cluster.errors import ConfigError, NotFoundError, StoreUnavailableError
from cluster.session import ray_session
from models.features import TARGET, CategoricalFeature, ClassTarget, ImageFeature, TextFeature, VectorFeature
from orchestrator.data.columns import Ragged, image_statistics, join, row_statistics
from orchestrator.data.dataset import manifest_key, open_dataset
from orchestrator.data.manifest import Source
from orchestrator.data.push import ls, push, push_prepared, show
from orchestrator.data.pushing.layout import rows_per_group
from orchestrator.data.pushing.pieces import OnRay
from orchestrator.data.shards import sha256
from orchestrator.data.sources import picture_files
from orchestrator.data.sources.formats import prepare
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


def version(content: Prepared) -> str:
    return push_prepared(MemoryStore(), content, leakage="keep").manifest.version


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
    assert len({version(other) for other in others}) == len(others)


def test_name_source_and_time_are_no_content():
    base = prepared()
    moved = replace(base, name="other", source=Source(format="test", uri="elsewhere", licence="MIT"))
    assert version(moved) == version(base)


def test_the_version_of_known_content_is_pinned():
    columns = {"image": np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4), TARGET: np.array([0, 1, 1, 0])}
    known = replace(
        prepared(),
        features={"image": ImageFeature(shape=(1, 4, 4), mean=(0.0,), std=(1.0,))},
        splits={"train": Part.of(columns), "test": Part.of(columns)},
    )
    assert version(known) == "35d1114605e2"
    assert version(replace(known, keeps_order=True)) == "3b24e218a210", "as before rows were shuffled"


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
    assert [(s.version, s.versions) for s in ls(store).found] == [(old.version, 1)]
    result = push_prepared(store, prepared(seed=1))
    assert result.changed
    assert open_dataset(store, "pictures").manifest == result.manifest != old


def test_a_first_push_that_was_interrupted_is_no_dataset():
    store = MemoryStore()
    result = push_prepared(store, prepared())
    store.delete([manifest_key("pictures", result.manifest.version)])
    assert ls(store) == ([], [])
    with pytest.raises(NotFoundError, match="There are no datasets yet"):
        open_dataset(store, "pictures")


def test_a_damaged_shard_is_mended_by_pushing_the_same_content_again_with_repair():
    store = MemoryStore()
    manifest = push_prepared(store, prepared()).manifest
    whole = dict(store.objects)
    key = f"datasets/pictures/{manifest.version}/{manifest.splits['train'].shards[0].path}"
    store.objects[key] = store.objects[key][:100]
    assert not push_prepared(store, prepared()).changed
    assert store.objects != whole
    assert not push_prepared(store, prepared(), repair=True).changed
    assert store.objects == whole


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


@pytest.mark.parametrize(
    ("rows", "row_bytes", "expected"),
    [
        (50_000, 3080, 2048),
        (1438, 72, 1024),
        (90_000, 12, 4096),
        (25_000_000, 12, 524_288),
        (100, 10 * 2**20, 1),
        (2**30, 2**10, 2**18),
    ],
)
def test_row_groups_are_about_8_mib_but_several_even_of_small_data(rows, row_bytes, expected):
    assert rows_per_group(rows, rows * row_bytes) == expected


def test_ls_shows_each_datasets_newest_version_and_show_any():
    store = MemoryStore()
    assert ls(store) == ([], [])
    old = push_prepared(store, prepared(seed=0)).manifest
    new = push_prepared(store, prepared(seed=1)).manifest
    push_prepared(store, prepared(), name="another")
    another, pictures = ls(store).found
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
    assert seen == [(100, 400), (200, 400), (300, 400), (400, 400)]  # read through, then written


def test_the_licence_that_a_person_gives_is_recorded():
    result = push(MemoryStore(), "sklearn:digits", licence="mine")
    assert result.manifest.source == Source(format="bundle", uri="sklearn:digits", licence="mine", options={})


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
    assert [summary.version for summary in ls(store).found] == [first.manifest.version]
    assert show(store, "digits") == first.manifest


def sentences(*train: Numbers) -> Prepared:
    return Prepared(
        name="sentences",
        features={"text": TextFeature(vocabulary=("a", "b"), max_tokens=5)},
        target=ClassTarget(classes=("no", "yes")),
        splits={"train": Part(train), "test": Part((Numbers(5001, 1), Numbers(5002, 3)))},
        source=Source(format="test", uri="sentences.csv"),
        keeps_order=True,
    )


def test_pieces_are_written_as_they_come_with_the_lengths_of_all_rows():
    store = MemoryStore()
    manifest = push_prepared(store, sentences(Numbers(1, 2500), Numbers(2501, 1), Numbers(2502, 2000))).manifest
    split = manifest.splits["train"]
    assert [shard.rows for shard in split.shards] == [2500, 1, 2000]
    assert [shard.path for shard in split.shards] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert split.lengths is not None
    data = store.objects[f"datasets/sentences/{manifest.version}/{split.lengths.path}"]
    assert sha256(data) == split.lengths.sha256
    assert np.frombuffer(data, "<i4").tolist() == [i % 5 for i in range(1, 4502)]
    dataset = open_dataset(store, "sentences")
    read = [dataset.read_row_group(shard, i) for shard in split.shards for i in range(len(shard.row_groups))]
    texts = join([columns["text"] for columns in read])
    assert isinstance(texts, Ragged)
    assert [texts[i].tolist() for i in (0, 2500, 4500)] == [[3], [2503], [4503]]


def test_the_statistics_of_pictures_are_those_of_all_training_pieces():
    parts = [prepared(seed).splits["train"].pieces[0] for seed in range(3)]
    open_feature = ImageFeature(shape=(1, 4, 4), mean=(), std=())
    content = replace(prepared(), features={"image": open_feature})
    content = replace(content, splits={"train": Part(tuple(parts)), "test": prepared(7).splits["test"]})
    feature = push_prepared(MemoryStore(), content).manifest.features["image"]
    assert isinstance(feature, ImageFeature)
    mean, std = image_statistics(np.concatenate([part.read()["image"] for part in parts]))
    np.testing.assert_allclose((feature.mean, feature.std), (mean, std))


def leaky() -> Prepared:
    content = sentences(Numbers(1, 10), Numbers(5003, 1), Numbers(20, 10))
    assert content.splits["test"].rows == 4
    return content


def test_a_row_of_a_test_split_that_is_in_training_too_is_refused_with_both_rows():
    store = MemoryStore()
    expected = (
        r"split test of sentences.csv must not be in training too, got 1 that are: row 2 of test is row 10 of train"
    )
    with pytest.raises(ConfigError, match=expected):
        push_prepared(store, leaky())
    assert store.objects == {}


def test_copies_in_training_may_be_dropped_or_kept():
    dropped = push_prepared(MemoryStore(), leaky(), leakage="drop").manifest
    clean = push_prepared(MemoryStore(), sentences(Numbers(1, 10), Numbers(20, 10))).manifest
    assert {name: split.rows for name, split in dropped.splits.items()} == {"train": 20, "test": 4}
    assert dropped.version == clean.version
    assert push_prepared(MemoryStore(), leaky(), leakage="keep").manifest.splits["train"].rows == 21


def test_the_target_does_not_make_a_copy_another_row():
    content = prepared()
    columns = content.splits["train"].columns
    other_label = {"image": columns["image"][5:6], TARGET: 1 - columns[TARGET][5:6]}
    with pytest.raises(ConfigError, match="row 0 of test is row 5 of train"):
        push_prepared(MemoryStore(), replace(content, splits={**content.splits, "test": Part.of(other_label)}))


def test_rows_that_differ_in_a_category_alone_are_no_copies():
    def part(city: int) -> Part:
        numbers = np.arange(20, dtype=np.float32).reshape(10, 2)
        return Part.of({"numbers": numbers, "city": np.full(10, city, np.int32), TARGET: np.zeros(10, np.int64)})

    content = Prepared(
        name="cities",
        features={
            "numbers": VectorFeature(names=("x", "y"), mean=(0.0, 0.0), std=(1.0, 1.0)),
            "city": CategoricalFeature(vocabulary=("here", "there")),
        },
        target=ClassTarget(classes=("no", "yes")),
        splits={"train": part(1), "test": part(2)},
        source=Source(format="test", uri="test"),
    )
    assert push_prepared(MemoryStore(), content).changed


@pytest.mark.store
def test_a_source_may_lie_in_a_bucket(store, tmp_path):
    rows = "\n".join(f"{user}\t{item}\t{(user * item) % 5 + 1}\t0" for user in range(20) for item in range(20))
    store.write("raw/u.data", rows.encode())
    (tmp_path / "u.data").write_text(rows)
    url = store.settings.url
    by_prefix = push(store, f"{url}/raw/", name="ratings").manifest
    assert by_prefix.source.uri == f"{url}/raw/"
    by_object = push(store, f"{url}/raw/u.data", name="ratings").manifest
    local = push(store, str(tmp_path / "u.data"), name="ratings").manifest
    assert by_prefix.version == by_object.version == local.version


def picture_folder(path: Path, *, pictures: int) -> Path:
    for label in ("cat", "dog"):
        (path / label).mkdir(parents=True)
        for i in range(pictures):
            pixels = np.random.default_rng([i, len(label), ord(label[0])]).integers(0, 256, (80, 70 + i, 3), np.uint8)
            Image.fromarray(pixels).save(path / label / f"{i}.png")
    return path


@pytest.mark.ray
@pytest.mark.store
def test_ray_data_writes_what_one_process_writes(store, ray_cluster, tmp_path, monkeypatch):
    folder = picture_folder(tmp_path / "animals", pictures=12)
    options = SourceOptions(side=32)
    monkeypatch.setattr(picture_files, "PIECE_FILES", 5)
    alone = push(MemoryStore(), str(folder), options=options).manifest
    spread = push(store, str(folder), options=options, on_cluster="always", address=ray_cluster.address).manifest
    assert len(alone.splits["train"].shards) == 4
    assert spread.model_copy(update={"created": alone.created}) == alone
    assert open_dataset(store, "animals").manifest == spread
    prepared = prepare(str(folder), options=options)
    damaged = sorted((folder / "dog").iterdir())[3]
    damaged.write_bytes(damaged.read_bytes()[:300])
    with ray_session(ray_cluster.address):
        with pytest.raises(ConfigError, match=f"{damaged.name} must be a whole picture"):
            push_prepared(store, prepared, runner=OnRay())
        shutil.rmtree(folder)
        with pytest.raises(ConfigError, match=r"must be readable on every machine .* or prepare it here"):
            push_prepared(store, prepared, runner=OnRay())
    assert open_dataset(store, "animals").manifest == spread
    assert not [thread for thread in threading.enumerate() if "usage" in thread.name], "nothing is asked for figures"


def test_nothing_left_to_do_needs_no_cluster():
    assert list(OnRay().map(lambda _number, _columns: None, [])) == []
