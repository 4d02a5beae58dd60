"""Appending rows of each format: what is stored is what the version's rules make of the new files."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_store import MemoryStore
from PIL import Image
from test_commands_data import write_boxes
from test_data_sources_pictures import cifar10, folder, idx_files, parquet_folder

from cluster.errors import ConfigError
from models.features import TARGET, TextFeature
from models.preparing.sounds import decode_wav, resample
from models.text import tokens
from orchestrator.data.columns import SPARSE, Columns, Ragged, join
from orchestrator.data.dataset import open_dataset
from orchestrator.data.manifest import Manifest
from orchestrator.data.push import push
from orchestrator.data.sources.options import SourceOptions


def pushed(store: Any, path: Path, **options: Any) -> Manifest:
    return push(store, str(path), name="rows", options=SourceOptions(**options), on_cluster="never").manifest


def appended(store: Any, path: Path, **options: Any) -> Manifest:
    options = SourceOptions(**options)
    return push(store, str(path), name="rows", options=options, append=True, on_cluster="never").manifest


def new_rows(store: Any) -> dict[str, Columns]:
    """What each split was given by the last appending."""
    dataset = open_dataset(store, "rows")
    found = {}
    for name, split in dataset.manifest.splits.items():
        shards = [shard for shard in split.shards if shard.version is None]
        parts = [dataset.read_row_group(shard, group) for shard in shards for group in range(len(shard.row_groups))]
        if parts:
            found[name] = {column: join([part[column] for part in parts]) for column in parts[0]}
    return found


def all_new_rows(store: Any) -> Columns:
    found = [*new_rows(store).values()]
    return {column: join([part[column] for part in found]) for column in found[0]}


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(store: Any, path: Path, message: str, **options: Any) -> None:
    before = dict(store.objects)
    with pytest.raises(ConfigError, match=message):
        appended(store, path, **options)
    assert store.objects == before


# ----------------------------------------------------------------------------------------------------------- texts

WORDS = ("good", "film", "bad", "plot", "actor", "scene")


def text(i: int) -> str:
    return f"{WORDS[i % 6]} {WORDS[i // 6 % 6]} {WORDS[i * 7 % 5]}"


def expected_tokens(store: Any, texts: dict[str, str]) -> dict[tuple[int, ...], str]:
    feature = open_dataset(store, "rows").manifest.features["text"]
    assert isinstance(feature, TextFeature)
    return {tuple(tokens(one, feature)): label for one, label in texts.items()}


def texts_read(store: Any) -> dict[tuple[int, ...], str]:
    target = open_dataset(store, "rows").manifest.target
    columns = all_new_rows(store)
    assert isinstance(columns["text"], Ragged)
    labels = [target.classes[label] for label in columns[TARGET].tolist()]  # type: ignore[union-attr]
    return {tuple(columns["text"][row].tolist()): label for row, label in enumerate(labels)}


def test_texts_of_files_have_the_old_vocabulary_and_length(tmp_path):
    store = MemoryStore()
    for label in ("pos", "neg"):
        write(tmp_path / f"a/reviews.{label}", *(f"{text(i)} {label} end" for i in range(36)))
    old = pushed(store, tmp_path / "a")
    new = {"good film zebra": "pos", "good " * 30 + "plot": "pos", "bad scene": "pos"}
    write(tmp_path / "b/reviews.pos", *new)
    manifest = appended(store, tmp_path / "b")
    assert manifest.features == old.features
    assert texts_read(store) == expected_tokens(store, new)
    assert max(len(row) for row in texts_read(store)) == 5
    (change,) = manifest.additions[0].source.changes
    assert (change.text, change.numbers) == ("1 words of text are none of its vocabulary.", {"unknown": 1})


def test_texts_in_folders_are_given_the_classes_of_their_folders(tmp_path):
    store = MemoryStore()
    for i in range(24):
        write(tmp_path / f"a/{'pos' if i % 2 else 'neg'}/{i}.txt", text(i))
    pushed(store, tmp_path / "a")
    for split, label, one in (("train", "pos", "good bad"), ("test", "neg", "scene bad")):
        write(tmp_path / f"b/{split}/{label}/1.txt", one)
    appended(store, tmp_path / "b")
    assert {split: len(columns[TARGET]) for split, columns in new_rows(store).items()} == {"train": 1, "test": 1}
    assert texts_read(store) == expected_tokens(store, {"good bad": "pos", "scene bad": "neg"})
    write(tmp_path / "c/meh/1.txt", "a film")
    write(tmp_path / "c/pos/1.txt", "a film")
    refused(
        store, tmp_path / "c", r"the class of .*c/meh/1\.txt must be one of the 2 of rows version .*, neg, pos, got 'm"
    )
    refused(
        store, write(tmp_path / "d.csv", "text,label", "good,pos"), "must be files of texts in folders or lines, as the"
    )


def test_texts_of_a_table_may_have_a_number_as_target(tmp_path):
    store = MemoryStore()
    lines = [f"{text(i)},{i / 2},x" for i in range(36)]
    pushed(store, write(tmp_path / "a.csv", "review,stars,note", *lines), text="review", target="stars")
    appended(store, write(tmp_path / "b.csv", "stars,review", "7.25,good bad scene", "99,plot actor"))
    columns = all_new_rows(store)
    assert sorted(columns[TARGET].tolist()) == [7.25, 99]
    refused(
        store, write(tmp_path / "c.csv", "stars,text", "1,good"), "must have the columns of .*, review, got no review"
    )
    refused(store, write(tmp_path / "c.csv", "stars,review", "1,"), "review in .* must be given, got nothing in row 2")


# ---------------------------------------------------------------------------------------------------------- sounds


def sound(path: Path, seed: int, *, samples: int = 400, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(-9000, 9000, samples)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(values.astype("<i2").tobytes())
    return path


def sounds(root: Path, start: int, count: int, **more: Any) -> Path:
    for i in range(start, start + count):
        for label in ("high", "low"):
            sound(root / label / f"{i}.wav", 2 * i + (label == "low"), **more)
    return root


def sounds_read(store: Any) -> set[tuple[bytes, int]]:
    columns = all_new_rows(store)
    assert isinstance(columns["audio"], Ragged)
    return {(columns["audio"][row].tobytes(), label) for row, label in enumerate(columns[TARGET].tolist())}


def test_sounds_are_cut_and_must_have_the_old_rate(tmp_path):
    store = MemoryStore()
    old = pushed(store, sounds(tmp_path / "a", 0, 10))
    long = [sound(tmp_path / "b" / "low" / f"{i}.wav", 100 + i, samples=700) for i in range(3)]
    short = sound(tmp_path / "b" / "high" / "x.wav", 200, samples=90)
    manifest = appended(store, tmp_path / "b")
    assert manifest.features == old.features
    expected = {(decode_wav(path.read_bytes())[0][:400].tobytes(), 1) for path in long}
    assert sounds_read(store) == {*expected, (decode_wav(short.read_bytes())[0].tobytes(), 0)}
    assert (
        manifest.additions[0].source.changes[-1].text.startswith("cut 3 sounds after 400 samples, the longest of rows")
    )
    sounds(tmp_path / "c", 50, 1, rate=16000)
    refused(
        store, tmp_path / "c", r"c/high/50\.wav must have 8000 samples per second, as rows version .* has, got 16000"
    )
    sound(tmp_path / "d" / "low" / "1.wav", 1)
    sound(tmp_path / "d" / "middle" / "1.wav", 2)
    refused(
        store, tmp_path / "d", r"the class of .*d/middle/1\.wav must be one of the 2 of .*, high, low, got 'middle'"
    )


def test_sounds_are_resampled_where_those_of_the_version_were_and_tested_by_its_pattern(tmp_path):
    store = MemoryStore()
    pushed(store, sounds(tmp_path / "a", 0, 10), rate=4000, test="[0-4].wav")
    path = sound(tmp_path / "b" / "low" / "3.wav", 7, rate=16000, samples=640)
    sound(tmp_path / "b" / "high" / "30.wav", 1000)
    appended(store, tmp_path / "b")
    columns = new_rows(store)
    samples, rate = decode_wav(path.read_bytes())
    assert columns["test"]["audio"][0].tolist() == resample(samples, rate, 4000).tolist()
    assert {split: found[TARGET].tolist() for split, found in columns.items()} == {"test": [1], "train": [0]}


# ----------------------------------------------------------------------------------------------------- sparse rows


@pytest.mark.parametrize("first", [0, 1])
def test_columns_of_sparse_rows_count_as_in_the_version(tmp_path, first):
    store = MemoryStore()
    rows = [f"{i % 2} {first}:{i + 1} {first + 3 + i % 4}:2" for i in range(40)]
    old = pushed(store, write(tmp_path / "a.svm", *rows))
    assert old.features["sparse"].columns == 7  # type: ignore[union-attr]
    appended(store, write(tmp_path / "b.svm", f"1 {first + 2}:5 {first + 6}:7.5 # no first column here"))
    columns = all_new_rows(store)
    assert columns[TARGET].tolist() == [1]
    assert columns["sparse"][0].tolist() == np.array([(2, 5), (6, 7.5)], SPARSE).tolist()
    last = first + 6
    bad = write(tmp_path / "c.svm", f"1 {last}:1", f"0 {last + 1}:1")
    refused(store, bad, rf"c\.svm must have columns {first} to {last}, as rows .* has, got column {last + 1} in row 2")
    refused(store, write(tmp_path / "c.svm", f"2 {last}:1"), r"the class of row 1 of .*c\.svm, comments .* got '2'")
    if first:
        refused(store, write(tmp_path / "c.svm", "1 0:1"), r"must have columns 1 to 7, .* got column 0 in row 1")


def test_sparse_rows_of_a_version_that_does_not_say_where_columns_begin_are_refused(tmp_path):
    store = MemoryStore()
    manifest = pushed(store, write(tmp_path / "a.svm", *(f"{i % 2} 1:{i}" for i in range(40))))
    key = f"datasets/rows/{manifest.version}/manifest.json"
    silent = manifest.model_copy(update={"source": manifest.source.model_copy(update={"changes": ()})})
    store.objects[key] = silent.model_dump_json().encode()
    refused(store, write(tmp_path / "b.svm", "1 1:5"), "must say whether its columns count from 0 or from 1")


# --------------------------------------------------------------------------------------------------------- ratings


def ratings(path: Path, pairs: list[tuple[int, int]], *, header: bool = True) -> Path:
    lines = [f"{user}\t{item}\t{(user + item) % 5 + 1}\t99" for user, item in pairs]
    return write(path, *(["userId\tmovieId\trating\ttimestamp"] if header else []), *lines)


@pytest.mark.parametrize("header", [True, False])
def test_ratings_have_the_old_users_and_items_and_strangers_have_index_0(tmp_path, header):
    store = MemoryStore()
    old_pairs = [(user, item) for user in range(1, 21) for item in range(1, 11)]
    old = pushed(store, ratings(tmp_path / "a/u.data", old_pairs, header=header))
    new = [*((user, 900 + user) for user in range(1, 31)), (77, 3)]
    manifest = appended(store, ratings(tmp_path / "b/u.data", new, header=header))
    assert manifest.additions[0].rows == {"train": 28, "test": 3}
    user, item = (old.features[name].vocabulary for name in ("user", "item"))  # type: ignore[union-attr]
    columns = all_new_rows(store)
    found = sorted(zip(*(columns[name].tolist() for name in ("user", "item", TARGET)), strict=True))
    expected = [
        (
            user.index(str(u)) + 1 if str(u) in user else 0,
            item.index(str(i)) + 1 if str(i) in item else 0,
            (u + i) % 5 + 1,
        )
        for u, i in new
    ]
    assert found == sorted(expected)


def test_an_item_that_its_user_has_rated_before_is_refused_or_stays_in_its_split(tmp_path):
    store = MemoryStore()
    pairs = [(user, item) for user in range(1, 21) for item in range(1, 11)]
    pushed(store, ratings(tmp_path / "a/u.data", pairs))
    first = open_dataset(store, "rows")
    more = ratings(tmp_path / "b/u.data", [(1, 500), *pairs])
    message = r"must rate no item that its user has rated in rows version .*, got 200 such rows, the first is row 1 \("
    refused(store, more, message)
    appended(store, more, copies="last")

    def of(dataset: Any, split: str, *, new: bool) -> set[tuple[int, int]]:
        shards = [shard for shard in dataset.split(split).shards if (shard.version is None) is new]
        parts = [dataset.read_row_group(shard, 0) for shard in shards]
        return {pair for part in parts for pair in zip(part["user"].tolist(), part["item"].tolist(), strict=True)}

    for split in ("train", "test"):
        added = of(open_dataset(store, "rows"), split, new=True)
        assert {pair for pair in added if all(pair)} == of(first, split, new=True)
    twice = ratings(tmp_path / "c/u.data", [(1, 600), (2, 600), (1, 600)])
    refused(store, twice, "must rate each item once per user, got user 1 and item 600 in rows 2 and 4")


def test_ratings_whose_zeros_were_drawn_are_refused(tmp_path):
    store = MemoryStore()
    pairs = [f"{user},{item}" for user in range(20) for item in range(user % 3, 30, 3)]
    pushed(store, write(tmp_path / "a.csv", "user,item", *pairs), negatives=2)
    refused(
        store, write(tmp_path / "b.csv", "user,item", "3,1"), "must have a column of ratings to be appended, got rows"
    )


# -------------------------------------------------------------------------------------------------------- pictures


def pictures(root: Path, label: str, start: int, count: int, *, height: int = 5, width: int = 4) -> dict[bytes, str]:
    """Write pictures of noise and return their pixels with their class."""
    found = {}
    for i in range(start, start + count):
        pixels = np.random.default_rng([i, len(label)]).integers(0, 256, (height, width, 3), np.uint8)
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / label / f"{i}.png")
        found[pixels.transpose(2, 0, 1).tobytes()] = label
    return found


def pictures_read(store: Any, classes: tuple[str, ...]) -> dict[bytes, str]:
    columns = all_new_rows(store)
    labels = columns[TARGET].tolist()
    return {columns["image"][row].tobytes(): classes[label] for row, label in enumerate(labels)}


def test_pictures_of_one_class_are_appended_raw(tmp_path):
    store = MemoryStore()
    for label in ("cat", "horse"):
        pictures(tmp_path / "a", label, 0, 10)
    old = pushed(store, tmp_path / "a")
    expected = pictures(tmp_path / "b", "horse", 100, 10)
    manifest = appended(store, tmp_path / "b")
    assert manifest.additions[0].rows == {"train": 8, "test": 2}
    assert manifest.features == old.features
    assert pictures_read(store, ("cat", "horse")) == expected
    pictures(tmp_path / "c", "cat", 200, 2, width=6)
    refused(
        store, tmp_path / "c", r"c/cat/200\.png must be a picture of 4 x 5 pixels, as those of rows .* got 6 x 5\. M"
    )
    pictures(tmp_path / "d", "dog", 200, 2)
    refused(
        store, tmp_path / "d", r"the class of .*d/dog/200\.png must be one of the 2 of .*, cat, horse, got 'dog'\. M"
    )


def test_pictures_are_appended_as_files_and_a_known_one_stays_in_its_split(tmp_path):
    store = MemoryStore()
    for label in ("cat", "horse"):
        pictures(tmp_path / "a", label, 0, 10, width=90, height=80)
    pushed(store, tmp_path / "a", side=32)
    pictures(tmp_path / "b", "cat", 0, 20, width=90, height=80)
    manifest = appended(store, tmp_path / "b")
    files = {path.read_bytes() for path in (tmp_path / "b/cat").iterdir()}
    assert set(pictures_read(store, ("cat", "horse"))) == files
    assert manifest.additions[0].rows == {"train": 16, "test": 4}
    dataset = open_dataset(store, "rows")
    split_of: dict[bytes, str] = {}
    for split in ("train", "test"):
        for shard in dataset.split(split).shards:
            column = dataset.read_row_group(shard, 0)["image"]
            assert isinstance(column, Ragged)
            for row in range(len(column)):
                assert split_of.setdefault(column[row].tobytes(), split) == split
    assert len(split_of) == 30


def test_grey_pictures_take_no_colours_and_damaged_ones_may_be_skipped(tmp_path):
    store = MemoryStore()
    for label in ("cat", "dog"):
        for i in range(10):
            (tmp_path / "a" / label).mkdir(parents=True, exist_ok=True)
            grey = np.random.default_rng([i, ord(label[0])]).integers(0, 256, (5, 4), np.uint8)
            Image.fromarray(grey).save(tmp_path / "a" / label / f"{i}.png")
    pushed(store, tmp_path / "a")
    pictures(tmp_path / "b", "dog", 0, 3)
    refused(
        store, tmp_path / "b", r"b/dog/0\.png must be a grey picture, as those of rows .* got one with colours\. Mend"
    )
    for path in (tmp_path / "b" / "dog").iterdir():
        Image.open(path).convert("L").save(path)
    (tmp_path / "b" / "dog" / "3.png").write_bytes(b"no picture")
    refused(store, tmp_path / "b", r"dog/3\.png must be a whole picture")
    manifest = appended(store, tmp_path / "b", damaged="skip")
    assert sum(manifest.additions[0].rows.values()) == 3
    assert manifest.additions[0].source.changes[0].names == ("dog/3.png",)


def test_pictures_with_splits_of_their_own(tmp_path):
    store = MemoryStore()
    names = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in ("cat", "dog") for i in range(3)]
    pushed(store, folder(tmp_path / "a", *names))
    appended(store, folder(tmp_path / "b", "train/dog/7.png", "test/cat/8.png", "test/cat/9.png"))
    assert {split: found[TARGET].tolist() for split, found in new_rows(store).items()} == {"train": [1], "test": [0, 0]}


def test_pictures_in_parquet_have_the_old_classes(tmp_path):
    store = MemoryStore()
    old = pushed(store, parquet_folder(tmp_path / "a", names=["cat", "dog", "owl"]))
    manifest = appended(store, parquet_folder(tmp_path / "b", names=["cat", "dog", "owl"]))
    assert {name: split.rows for name, split in manifest.splits.items()} == {
        name: 2 * split.rows for name, split in old.splits.items()
    }
    for split, columns in new_rows(store).items():
        (shard,) = old.splits[split].shards
        labels = open_dataset(store, "rows", old.version).read_row_group(shard, 0)[TARGET]
        assert sorted(columns[TARGET].tolist()) == sorted(labels.tolist())
    other = parquet_folder(tmp_path / "c", names=["dog", "cat", "owl"])
    refused(
        store, other, r"the classes of .* must be in the order of those of rows .*, cat, dog, owl, got dog, cat, owl"
    )
    refused(
        store, parquet_folder(tmp_path / "d"), "must name its classes, as the source of rows version .* did, got no na"
    )


def test_idx_files_have_the_old_size_and_classes(tmp_path):
    store = MemoryStore()
    idx_files(tmp_path / "a")
    pushed(store, tmp_path / "a")
    arrays = idx_files(tmp_path / "b")
    appended(store, tmp_path / "b")
    for split, name in (("train", "train"), ("test", "t10k")):
        columns = new_rows(store)[split]
        images, labels = arrays[f"{name}-images-idx3-ubyte"], arrays[f"{name}-labels-idx1-ubyte"]
        expected = {image.tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
        found = {columns["image"][row].tobytes(): label for row, label in enumerate(columns[TARGET].tolist())}
        assert found == expected
    idx_files(tmp_path / "c", first=1)
    refused(store, tmp_path / "c", r"the label in row \d+ of .* must be in 0\.\.2, got 3")


@pytest.mark.parametrize("pickled", [False, True])
def test_batches_of_cifar_may_name_their_classes_in_another_order(tmp_path, pickled):
    store = MemoryStore()
    cifar10(tmp_path / "a")
    pushed(store, tmp_path / "a")
    rows = cifar10(tmp_path / "b", pickled=pickled, batches=1)
    classes = ("cat", "dog", "owl")
    if not pickled:
        (tmp_path / "b/batches.meta.txt").write_text("owl\ncat\ndog\n")
        classes = ("owl", "cat", "dog")
    appended(store, tmp_path / "b")
    expected = {
        image.tobytes(): classes[label]
        for images, labels in rows.values()
        for image, label in zip(images, labels.tolist(), strict=True)
    }
    assert pictures_read(store, ("cat", "dog", "owl")) == expected


def test_pictures_with_boxes(tmp_path):
    store = MemoryStore()
    old = pushed(store, write_boxes(tmp_path / "a"), side=32)
    more = write_boxes(tmp_path / "b")
    for number, path in enumerate(sorted((more / "JPEGImages").iterdir())):
        Image.fromarray(np.full((40, 60, 3), 10 * number + 5, np.uint8)).save(path)
    manifest = appended(store, more)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 16, "test": 8}
    assert manifest.features == old.features
    columns = new_rows(store)["test"]
    assert isinstance(columns[TARGET], Ragged)
    assert columns[TARGET].values[:, 1:].tolist() == [np.float32([4 / 60, 4 / 40, 30 / 60, 20 / 40]).tolist()] * 4
    annotation = more / "Annotations/p3.xml"
    annotation.write_text(annotation.read_text().replace("<name>cat", "<name>owl"))
    refused(
        store, more, r"every object of .*p3\.xml must be of one of the 2 classes of rows .*, cat, dog, got 'owl'\. Mend"
    )


def test_a_source_of_another_kind_is_refused(tmp_path):
    store = MemoryStore()
    pushed(store, sounds(tmp_path / "a", 0, 10))
    refused(
        store, write(tmp_path / "b/x.csv", "size,label", "1,a").parent, r"must hold sounds as \.wav files, got none"
    )
    refused(store, tmp_path / "nowhere", "must be a file, a folder or one of .*, which does not exist")
