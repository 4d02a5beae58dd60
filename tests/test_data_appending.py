"""Appending: the old shards stay where they lie, new rows are read by the old rules, and no row is in two splits."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_store import MemoryStore

from cluster.errors import ConfigError, IntegrityError, NotFoundError, PreconditionError, StoreUnavailableError
from cluster.session import ray_session
from models.features import TARGET, CategoricalFeature, VectorFeature
from models.preparing.rows import NUMBERS, features_of
from orchestrator.config import Experiment
from orchestrator.data.columns import Columns, Ragged, join
from orchestrator.data.dataset import Dataset, manifest_key, open_dataset, read_manifest
from orchestrator.data.manifest import Manifest
from orchestrator.data.push import ls, push
from orchestrator.data.pushing import layout
from orchestrator.data.pushing.passes import PushResult
from orchestrator.data.reading.reader import Reader
from orchestrator.data.sources.options import SourceOptions
from orchestrator.driving.plan import plan_run
from orchestrator.reporting.dataset.page import render_page
from orchestrator.training.epoch import evaluate, train_epoch
from orchestrator.training.fit import fit
from orchestrator.training.trainer import Trainer, World

GOLDEN = Path(__file__).parent / "golden" / "datasets-1"
JOBS = ("cook", "smith", "baker", "pilot")
OPTIONS = SourceOptions(
    target="income", ignore=("id",), missing="median", indicators=True, thousands=",", dates=("year", "month")
)
HEADER = "age,savings,job,since,income,id"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def person(i: int, *, jobs: int = 3) -> str:
    """A row of its own income, with numbers written for people, a date, and sometimes a gap."""
    age = "" if i % 10 == 7 else str(20 + i % 31)
    return f'{age},"${1000 + i * 13:,}",{JOBS[i % jobs]},20{10 + i % 10}-{1 + i % 12:02}-03,{1000 + 3 * i},{i}'


def people(path: Path, ids: range, *, jobs: int = 3) -> Path:
    return write(path, HEADER, *(person(i, jobs=jobs) for i in ids))


def sized(path: Path, *ids: int, classes: int = 2) -> Path:
    """Rows of one number, and a class that depends on it."""
    return write(path, "size,label", *(f"{i},{'abc'[i % classes]}" for i in ids))


def pushed(store: Any, path: Path, options: SourceOptions | None = None) -> Manifest:
    return push(store, str(path), name="rows", options=options, on_cluster="never").manifest


def appended(store: Any, path: Path, options: SourceOptions | None = None, **more: Any) -> PushResult:
    return push(store, str(path), name="rows", options=options, append=True, on_cluster="never", **more)


def contents(dataset: Dataset, split: str, *, new_only: bool = False) -> Columns:
    """All rows of a split, or those that lie in the version's own folder."""
    shards = [shard for shard in dataset.split(split).shards if not (new_only and shard.version)]
    parts = [dataset.read_row_group(shard, group) for shard in shards for group in range(len(shard.row_groups))]
    return {name: join([part[name] for part in parts]) for name in parts[0]}


def sizes(store: Any, version: str | None = None) -> dict[str, list[int]]:
    """The number of every row of each split."""
    dataset = open_dataset(store, "rows", version)
    columns = {split: contents(dataset, split) for split in dataset.manifest.splits}
    return {split: sorted(found[NUMBERS][:, 0].astype(int).tolist()) for split, found in columns.items()}  # type: ignore[call-overload,index]


# ------------------------------------------------------------------------------------------ what is read, and how


def test_each_row_becomes_what_a_request_with_it_becomes(tmp_path):
    store = MemoryStore()
    old = pushed(store, people(tmp_path / "people.csv", range(60)), OPTIONS)
    more = people(tmp_path / "more.csv", range(100, 140), jobs=4)
    manifest = appended(store, more).manifest
    rows = {float(row["income"]): row for row in csv.DictReader(more.read_text().splitlines())}
    vector, job = old.features[NUMBERS], old.features["job"]
    assert old.rows and isinstance(vector, VectorFeature) and isinstance(job, CategoricalFeature)
    for split, count in {"train": 32, "test": 8}.items():
        columns = contents(open_dataset(store, "rows"), split, new_only=True)
        assert len(columns[TARGET]) == manifest.additions[0].rows[split] == count
        for place, income in enumerate(columns[TARGET].tolist()):
            expected = features_of(rows.pop(income), old.rows)
            values = np.array([expected[NUMBERS][name] for name in vector.names])
            assert columns[NUMBERS][place].tolist() == (values - vector.offsets).astype(np.float32).tolist()
            word = expected["job"]
            assert columns["job"][place] == (1 + job.vocabulary.index(word) if word in job.vocabulary else 0)
    assert rows == {}
    said = " ".join(change.text for change in manifest.additions[0].source.changes)
    assert "filled 4 missing values of age as in rows version" in said
    assert "10 values of job are none of its vocabulary, and have index 0." in said
    assert "40 targets are outside of 1003 to 1174, within which a model answers." in said


def test_features_stay_so_that_a_model_can_go_on(tmp_path):
    store = MemoryStore()
    old = pushed(store, people(tmp_path / "people.csv", range(60)), OPTIONS)
    manifest = appended(store, people(tmp_path / "more.csv", range(500, 600), jobs=4)).manifest
    assert (manifest.features, manifest.target, manifest.rows) == (old.features, old.target, old.rows)
    assert open_dataset(store, "rows").signature() == open_dataset(store, "rows", old.version).signature()


def test_the_old_shards_are_neither_copied_nor_changed(tmp_path):
    store = MemoryStore()
    old = pushed(store, people(tmp_path / "people.csv", range(60)), OPTIONS)
    before = dict(store.objects)
    manifest = appended(store, people(tmp_path / "more.csv", range(100, 140))).manifest
    assert {key: store.objects[key] for key in before} == before
    names = ("manifest.json", "test-00000-of-00001.parquet", "train-00000-of-00001.parquet")
    assert sorted(set(store.objects) - set(before)) == [f"datasets/rows/{manifest.version}/{name}" for name in names]
    for name, split in manifest.splits.items():
        kept, added = split.shards
        assert kept == old.splits[name].shards[0].model_copy(update={"version": old.version})
        assert (added.version, added.rows) == (None, manifest.additions[0].rows[name])
    assert (manifest.appended_to, manifest.source) == (old.version, old.source)
    assert open_dataset(store, "rows", old.version).manifest == old


SAME = person(100)
REFUSED = {
    "no since": (
        "age,savings,job,when,income,id",
        SAME,
        r"must have the columns of rows version .*, got no since and wh",
    ),
    "another": (
        HEADER + ",height",
        SAME + ",3",
        r"must have the columns of rows version .*, got height beside them\. ",
    ),
    "no target": (
        "age,savings,job,since,id",
        SAME.replace("1300,", ""),
        r"one column to predict, called income, got id",
    ),
    "number": (
        HEADER,
        SAME.replace("27,", "old,"),
        r"age in row 2 of .* written like 1,234\.5, got 'old'\. Mend it, or p",
    ),
    "currency": (HEADER, SAME.replace("$", "€"), r"savings in row 2 of .* written like \$1,234\.5, got '€2,300'"),
    "date": (
        HEADER,
        SAME.replace("2010-05-03", "1.2.2010"),
        r"since in row 2 of .* a date in ISO 8601, got '1\.2\.2010'",
    ),
    "target": (
        HEADER,
        SAME.replace(",1300,", ",much,"),
        r"income in row 2 of .* number in 32 bits, .* got 'much'\. Mend",
    ),
    "no job": (HEADER, SAME.replace("smith", ""), None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_row_and_the_cure(tmp_path, case):
    store = MemoryStore()
    old = pushed(store, people(tmp_path / "people.csv", range(60)), OPTIONS)
    header, row, message = REFUSED[case]
    path = write(tmp_path / "more.csv", header, row)
    if message is None:  # a category of its own, as for a request
        assert appended(store, path).changed
        return
    with pytest.raises(ConfigError, match=message):
        appended(store, path)
    assert open_dataset(store, "rows").manifest == old


def test_a_missing_value_that_the_version_has_no_fill_for_is_refused(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    with pytest.raises(
        ConfigError, match=r"size in row 3 of .* must be given, as rows version .* has no value for a mis"
    ):
        appended(store, write(tmp_path / "b.csv", "size,label", "50,a", ",b"))


def test_rows_with_gaps_are_left_out_where_those_of_the_version_were(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)), SourceOptions(missing="drop"))
    manifest = appended(store, write(tmp_path / "b.csv", "size,label", "50,a", ",b", "51,b", "52,")).manifest
    assert sum(split.rows for split in manifest.splits.values()) == 42
    (change,) = manifest.additions[0].source.changes
    assert change.text == "left out 2 of 4 rows, with no value of size in 1, label in 1"


def test_a_class_that_the_version_does_not_have_is_refused(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    message = (
        r"the class of row 3 of .*b\.csv must be one of the 2 of rows version \w+, a, b, got 'c'\. Mend it, or push "
    )
    with pytest.raises(ConfigError, match=message):
        appended(store, sized(tmp_path / "b.csv", 60, 62, classes=3))


def test_classes_that_are_numbers_may_be_written_as_others(tmp_path):
    store = MemoryStore()
    pushed(store, write(tmp_path / "a.csv", "size,label", *(f"{i},{i % 3}" for i in range(60))))
    appended(store, write(tmp_path / "b.csv", "size,label", *(f"{i},{i % 3}.0" for i in range(60, 90))))
    dataset = open_dataset(store, "rows")
    for split in ("train", "test"):
        columns = contents(dataset, split)
        assert columns[TARGET].tolist() == (columns[NUMBERS][:, 0].astype(int) % 3).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            SourceOptions(target="size"),
            "option target must be left out with --append, as rows are read by the rules of ",
        ),
        (SourceOptions(test_share=0.5), "option test_share must be left out with --append"),
        (SourceOptions(dates=("year",)), "option dates must be left out with --append"),
    ],
)
def test_options_that_would_change_the_rules_are_refused(tmp_path, options, message):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)), SourceOptions(target="label"))
    with pytest.raises(ConfigError, match=message):
        appended(store, sized(tmp_path / "b.csv", 50), options)
    assert appended(store, sized(tmp_path / "b.csv", 50), SourceOptions(target="label", delimiter=",")).changed


def test_another_format_another_dataset_and_a_version_without_append_are_refused(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    more = sized(tmp_path / "b.csv", 50)
    with pytest.raises(ConfigError, match=r"format must be that of rows version .*, table, to append to it, got wav"):
        appended(store, more, format="wav")
    with pytest.raises(
        NotFoundError, match=r"name must be a dataset in the store to append to, got 'b'. Datasets there: r"
    ):
        push(store, str(more), append=True)
    with pytest.raises(NotFoundError, match=r"data.version must be a version of dataset rows, got 'none'"):
        appended(store, more, to="none")
    with pytest.raises(ConfigError, match=r"to must be left out unless rows are appended, got x. Add --append"):
        push(store, str(more), to="x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "sklearn:digits",
            r"--append must be left out for digits version .*, of format bundle, got it: what a library b",
        ),
        ("statsmodels:elnino", "of format bundle"),
        ("series", r"of format series, got it: a series is cut by time .*\. Push all rows together as a new version\."),
    ],
)
def test_formats_to_which_nothing_is_appended_say_why(tmp_path, source, message):
    store = MemoryStore()
    if source == "series":
        days = [f"2024-01-{1 + i:02},{i}" for i in range(30)]
        source = str(write(tmp_path / "series.csv", "date,value", *days))
    name = push(store, source).manifest.name
    with pytest.raises(ConfigError, match=message):
        push(store, source, name=name, append=True)


# ------------------------------------------------------------------------------------------------ versions, lineage


def test_the_same_version_is_written_whoever_appends_and_whenever(tmp_path):
    versions = set()
    for _ in range(2):
        store = MemoryStore()
        pushed(store, people(tmp_path / "people.csv", range(60)), OPTIONS)
        versions.add(appended(store, people(tmp_path / "more.csv", range(100, 140))).manifest.version)
    other = appended(
        store, people(tmp_path / "more.csv", range(100, 141)), to=open_dataset(store, "rows").manifest.appended_to
    )
    assert len(versions) == 1 and other.manifest.version not in versions


def test_the_same_rows_are_appended_once_whatever_was_appended_since(tmp_path):
    store = MemoryStore()
    first = pushed(store, sized(tmp_path / "a.csv", *range(40)))
    second = appended(store, sized(tmp_path / "b.csv", *range(40, 60))).manifest
    third = appended(store, sized(tmp_path / "c.csv", *range(60, 80))).manifest
    objects = dict(store.objects)
    for name in ("b.csv", "c.csv"):
        again = appended(store, tmp_path / name)
        assert (again.manifest, again.changed) == (third, False)
    assert appended(store, tmp_path / "b.csv", to=first.version) == PushResult(second, changed=False)
    assert store.objects == objects


def test_two_appendings_one_after_the_other(tmp_path):
    store = MemoryStore()
    first = pushed(store, sized(tmp_path / "a.csv", *range(40)))
    second = appended(store, sized(tmp_path / "b.csv", *range(40, 60))).manifest
    third = appended(store, sized(tmp_path / "c.csv", *range(60, 80))).manifest
    assert [(a.version, a.appended_to) for a in third.additions] == [
        (second.version, first.version),
        (third.version, second.version),
    ]
    assert [shard.version for shard in third.splits["train"].shards] == [first.version, second.version, None]
    found = sizes(store)
    assert sorted(found["train"] + found["test"]) == list(range(80))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 64, "test": 16}
    assert set(sizes(store, first.version)["test"]) < set(sizes(store, second.version)["test"]) < set(found["test"])
    assert third.first_rows("train") == first.splits["train"].rows
    (summary,) = ls(store).found
    assert (summary.versions, summary.rows, summary.source) == (
        3,
        {"train": 64, "test": 16},
        f"table {tmp_path / 'a.csv'} and 2 appended to it",
    )


def test_rows_may_be_appended_to_a_version_that_is_not_the_newest(tmp_path):
    store = MemoryStore()
    first = pushed(store, sized(tmp_path / "a.csv", *range(40)))
    appended(store, sized(tmp_path / "b.csv", *range(40, 60)))
    fork = appended(store, sized(tmp_path / "c.csv", *range(60, 80)), to=first.version).manifest
    assert fork.appended_to == first.version
    assert open_dataset(store, "rows").manifest == fork
    found = sizes(store)
    assert sorted(found["train"] + found["test"]) == [*range(40), *range(60, 80)]


@pytest.mark.parametrize("failing_write", [1, 2, 3])
def test_an_interrupted_appending_leaves_the_old_version_and_is_completed_by_repetition(tmp_path, failing_write):
    store = MemoryStore()
    old = pushed(store, sized(tmp_path / "a.csv", *range(40)))
    more = sized(tmp_path / "b.csv", *range(40, 60))
    writes = 0

    def fail(operation: str, key: str) -> None:
        nonlocal writes
        writes += operation == "write"
        if operation == "write" and writes == failing_write:
            raise StoreUnavailableError("the store must answer, got nothing.")

    store.before = fail
    with pytest.raises(StoreUnavailableError):
        appended(store, more)
    assert open_dataset(store, "rows").manifest == old
    result = appended(store, more)
    assert result.changed and open_dataset(store, "rows").manifest == result.manifest
    found = sizes(store)
    assert sorted(found["train"] + found["test"]) == list(range(60))


def test_a_version_that_is_pushed_meanwhile_is_not_passed_over(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    more = sized(tmp_path / "b.csv", *range(40, 60))
    other: list[Manifest] = []

    def push_another(operation: str, key: str) -> None:
        if operation == "write" and not other:
            store.before = lambda operation, key: None
            other.append(appended(store, sized(tmp_path / "c.csv", *range(60, 80))).manifest)

    store.before = push_another
    with pytest.raises(
        PreconditionError, match=r"the newest version of rows must still be .* Repeat the command to append"
    ):
        appended(store, more)
    assert open_dataset(store, "rows").manifest == other[0]
    assert appended(store, more).manifest.appended_to == other[0].version
    found = sizes(store)
    assert sorted(found["train"] + found["test"]) == list(range(80))


def test_a_damaged_object_names_its_folder_and_is_mended_by_appending_with_repair(tmp_path):
    store = MemoryStore()
    old = pushed(store, sized(tmp_path / "a.csv", *range(40)))
    more = sized(tmp_path / "b.csv", *range(40, 60))
    manifest = appended(store, more).manifest
    appended(store, sized(tmp_path / "c.csv", *range(60, 80)))
    found = sizes(store)
    for version, cure in (
        (old.version, "Push the data again"),
        (manifest.version, f"--append --to {old.version} --rep"),
    ):
        key = f"datasets/rows/{version}/train-00000-of-00001.parquet"
        whole = store.objects[key]
        store.objects[key] = whole[:10] + bytes([whole[10] ^ 1]) + whole[11:]
        with pytest.raises(IntegrityError, match=rf"shard {key} must have SHA-256 .* {cure}"):
            sizes(store)
        if version == manifest.version:
            assert not appended(store, more, repair=True).changed
            assert store.objects[key] == whole
        store.objects[key] = whole
    assert sizes(store) == found


# ---------------------------------------------------------------------------------------------------------- splits


def test_a_split_keeps_its_share_of_every_class_however_few_rows_come_at_once(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    for i in range(40, 60):
        appended(store, sized(tmp_path / "one.csv", i))
    dataset = open_dataset(store, "rows")
    labels = contents(dataset, "test")[TARGET]
    assert np.bincount(labels).tolist() == [6, 6]  # type: ignore[arg-type]
    assert dataset.split("train").rows == 48


def test_a_row_that_equals_one_of_the_version_is_in_its_split(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    before = sizes(store)
    manifest = appended(store, sized(tmp_path / "b.csv", *range(40), *range(40, 60))).manifest
    assert manifest.additions[0].rows == {"train": 48, "test": 12}
    after = sizes(store)
    for split in ("train", "test"):
        known = [i for i in after[split] if i < 40]
        assert sorted(set(known)) == before[split] and len(known) == 2 * len(before[split])
    said = [change.text for change in manifest.additions[0].source.changes]
    assert said == [f"40 of 60 rows equal rows of version {manifest.appended_to}, and are in their split."]


def test_equal_new_rows_are_on_one_side_even_if_their_classes_differ(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    twins = [f"{i},{label}" for i in range(100, 200) for label in "ab"]
    appended(store, write(tmp_path / "b.csv", "size,label", *twins))
    found = sizes(store)
    assert not set(found["train"]) & set(found["test"])
    assert 30 <= sum(i >= 100 for i in found["test"]) <= 40


def split_folder(root: Path, **ids: list[int]) -> Path:
    root.mkdir(exist_ok=True)
    for split, rows in ids.items():
        sized(root / f"{split}.csv", *rows)
    return root


def test_a_source_with_splits_of_its_own_keeps_them(tmp_path):
    store = MemoryStore()
    pushed(store, split_folder(tmp_path / "a", train=[*range(30)], test=[*range(30, 40)], validation=[40, 41]))
    appended(store, split_folder(tmp_path / "b", train=[50, 51], test=[52, 53, 54]))
    assert sizes(store) == {
        "train": [*range(30), 50, 51],
        "test": [*range(30, 40), 52, 53, 54],
        "validation": [40, 41],
    }


def test_a_source_without_splits_is_drawn_to_all_that_the_version_has(tmp_path):
    store = MemoryStore()
    pushed(store, split_folder(tmp_path / "a", train=[*range(60)], test=[*range(60, 80)], validation=[*range(80, 100)]))
    manifest = appended(store, sized(tmp_path / "b.csv", *range(100, 150))).manifest
    assert manifest.additions[0].rows == {"train": 30, "test": 10, "validation": 10}


def test_a_split_that_the_version_does_not_have_is_refused(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    with pytest.raises(
        ConfigError, match=r"splits of .*b must be some of those of rows version .*, train, test, got val"
    ):
        appended(store, split_folder(tmp_path / "b", train=[50], test=[51], validation=[52]))


@pytest.mark.parametrize(
    ("train", "test", "found", "kept"),
    [
        ([35, 50], [51], "row 0 of train .counted from 0., which a split that is tested on has", ([50], [51])),
        ([50, 51], [60, 3], "row 1 of test .counted from 0., which the training split has", ([50, 51], [60])),
        ([50, 60, 61], [60], "row 1 of train .counted from 0., which a split that is tested on has", ([50, 61], [60])),
    ],
    ids=["training row tested there", "test row trained on there", "among the new rows"],
)
def test_rows_that_another_split_has_are_refused_left_out_or_kept(tmp_path, train, test, found, kept):
    store = MemoryStore()
    old = pushed(store, split_folder(tmp_path / "a", train=[*range(30)], test=[*range(30, 40)]))
    more = split_folder(tmp_path / "b", train=train, test=test)
    with pytest.raises(
        ConfigError, match=f"must not be in training and in another split .*, got 1 that are: .* {found}"
    ):
        appended(store, more)
    dropped = appended(store, more, SourceOptions(leakage="drop")).manifest
    assert sizes(store) == {"train": [*range(30), *kept[0]], "test": [*range(30, 40), *kept[1]]}
    assert dropped.additions[0].source.changes[-1].option == "leakage=drop"
    everything = appended(store, more, SourceOptions(leakage="keep"), to=old.version).manifest
    assert everything.additions[0].rows == {"train": len(train), "test": len(test)}


def test_a_source_of_which_no_row_may_stay_is_refused(tmp_path):
    store = MemoryStore()
    pushed(store, split_folder(tmp_path / "a", train=[*range(30)], test=[*range(30, 40)]))
    with pytest.raises(ConfigError, match=r"must hold a row that can be appended to rows version .*, got none\. Mend"):
        appended(store, split_folder(tmp_path / "b", train=[35], test=[3]), SourceOptions(leakage="drop"))


# ----------------------------------------------------------------------------------------- what reads the new version


@pytest.mark.parametrize("logical_workers", [1, 2, 3, 4])
def test_the_training_order_covers_every_row_once_over_short_and_long_groups(tmp_path, monkeypatch, logical_workers):
    monkeypatch.setattr(layout, "_LEAST_GROUP_ROWS", 16)
    monkeypatch.setattr(layout, "SHARD_BYTES", 500)
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(130)))
    for number, ids in enumerate((range(130, 133), range(133, 190), range(190, 191))):
        appended(store, sized(tmp_path / f"{number}.csv", *ids))
    dataset = open_dataset(store, "rows")
    groups = [group.rows for shard in dataset.split("train").shards for group in shard.row_groups]
    assert len(groups) > 8 and groups[:-1] != sorted(groups[:-1], reverse=True), "short groups lie in the middle"
    expected = contents(dataset, "train")[NUMBERS][:, 0].tolist()  # type: ignore[call-overload,index]
    orders = set()
    for epoch in range(3):
        reader = Reader(dataset, dataset.signature(), cache="memory")
        plan = reader.plan(seed=1, epoch=epoch, logical_workers=logical_workers, batch_size=12, drop_last=False)
        batches = [b for step in reader.train_batches(plan, logical_workers=range(logical_workers)) for b in step]
        ids = [i for batch in batches for i in batch.sample_ids.tolist()]
        assert sorted(ids) == list(range(dataset.split("train").rows))
        read = [x for batch in batches for x in batch.tensors[NUMBERS][:, 0].tolist()]
        assert read == [expected[i] for i in ids]
        orders.add(tuple(ids))
    assert len(orders) == 3
    tested = [
        b for _, b in Reader(dataset, dataset.signature()).evaluate_batches("test", worker=0, workers=1, batch_size=7)
    ]
    assert sum(batch.size for batch in tested) == dataset.split("test").rows


def test_each_appended_part_is_mixed_among_itself_or_keeps_its_order(tmp_path):
    for order in (None, "keep"):
        store = MemoryStore()
        pushed(store, sized(tmp_path / "a.csv", *range(40)), SourceOptions(order=order))
        appended(store, sized(tmp_path / "b.csv", *range(100, 200)))
        rows = contents(open_dataset(store, "rows"), "train")[NUMBERS][:, 0].tolist()  # type: ignore[call-overload,index]
        assert max(rows[:32]) < 40 <= min(rows[32:])
        assert (rows == sorted(rows)) is (order == "keep")


def test_lengths_are_those_of_all_rows(tmp_path):
    def texts(name: str, start: int) -> Path:
        lines = [f"{'very ' * (i % 9)}good {JOBS[i % 4]} film" for i in range(start, start + 60)]
        return write(tmp_path / name, "text,label", *(f"{line},{'np'[i % 2]}" for i, line in enumerate(lines)))

    store = MemoryStore()
    pushed(store, texts("a.csv", 0))
    appended(store, texts("b.csv", 3))
    dataset = open_dataset(store, "rows")
    for split in ("train", "test"):
        column = contents(dataset, split)["text"]
        assert isinstance(column, Ragged)
        lengths = dataset.lengths(split)
        assert lengths is not None and lengths.tolist() == column.lengths.tolist()


def trainer_of(store: MemoryStore, manifest: Manifest) -> Trainer:
    settings = {
        "data": {"name": "rows", "version": manifest.version},
        "model": {"type": "mlp", "hidden": [8]},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05},
    }
    dataset = open_dataset(store, "rows", manifest.version)
    record = plan_run(Experiment.model_validate(settings), dataset, run=f"on-{manifest.version}")
    return fit(record, store=store, world=World(), checkpoints="last")


def test_a_model_that_was_trained_on_the_old_version_goes_on_with_the_new_one(tmp_path):
    store = MemoryStore()
    lines = [f"{i},{'low' if i < 500 else 'high'}" for i in range(0, 1000, 5)]
    old = pushed(store, write(tmp_path / "a.csv", "size,label", *lines))
    more = [f"{i},{'low' if i < 500 else 'high'}" for i in range(1, 1000, 5)]
    new = appended(store, write(tmp_path / "b.csv", "size,label", *more)).manifest
    before, after = trainer_of(store, old), trainer_of(store, new)
    assert (before.update, after.update) == (2 * 10, 2 * 20), "twice as many rows"
    after.network.load_state_dict(before.network.state_dict())
    assert evaluate(after, "test")["accuracy"] > 0.9, "as the numbers mean what they meant"
    train_epoch(after, 0)
    assert evaluate(after, "test")["accuracy"] > 0.9


def test_the_page_and_the_card_say_what_was_appended(tmp_path):
    store = MemoryStore()
    pushed(store, people(tmp_path / "people.csv", range(60)), OPTIONS)
    manifest = appended(store, people(tmp_path / "more.csv", range(100, 140), jobs=4), licence="CC0").manifest
    html = render_page(open_dataset(store, "rows"))
    assert f"32 train, 8 test rows of {tmp_path / 'more.csv'}, appended to version {manifest.appended_to}." in html
    assert "10 values of job are none of its vocabulary" in html
    assert manifest.additions[0].source.licence == "CC0"


# --------------------------------------------------------------------------------------------------- older manifests


def golden_store() -> MemoryStore:
    """Datasets that an earlier version of this program wrote."""
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    return MemoryStore({f"datasets/{path.relative_to(GOLDEN)}": path.read_bytes() for path in files})


def test_datasets_of_an_earlier_version_are_read():
    store = golden_store()
    assert {s.name: s.version for s in ls(store).found} == {"people": "a192fc763498", "opinions": "290b179955a3"}
    dataset = open_dataset(store, "people")
    assert (dataset.manifest.source.options, dataset.manifest.additions) == (None, ())
    incomes = [x for split in ("train", "test") for x in contents(dataset, split)[TARGET].tolist()]
    assert sorted(incomes) == [1000 + 37 * i for i in range(60)]
    lengths = open_dataset(store, "opinions").lengths("train")
    assert lengths is not None and lengths.tolist() == [4] * 48


def test_rows_are_appended_to_a_dataset_of_an_earlier_version(tmp_path):
    store = golden_store()
    more = write(tmp_path / "people.csv", "age,job,since,income,id", "40,cook,2021-05-01,77,1", ",pilot,,78,2")
    with pytest.raises(
        ConfigError, match="must have one column to predict, called label or target or class, got income"
    ):
        push(store, str(more), append=True)
    manifest = push(store, str(more), append=True, options=SourceOptions(target="income")).manifest
    assert manifest.appended_to == "a192fc763498"
    columns = contents(open_dataset(store, "people"), "train", new_only=True)
    rows = dict(zip(columns[TARGET].tolist(), columns[NUMBERS].tolist(), strict=True))
    assert rows == {77: [40, 2021, 5], 78: [36, 2020, 7]}
    texts = write(tmp_path / "opinions.csv", "text,label", "good zebra plot,pos")
    assert push(store, str(texts), append=True).changed
    column = contents(open_dataset(store, "opinions"), "train", new_only=True)["text"]
    vocabulary = open_dataset(store, "opinions").manifest.features["text"].vocabulary  # type: ignore[union-attr]
    assert isinstance(column, Ragged)
    assert column[0].tolist() == [2 + vocabulary.index("good"), 1, 2 + vocabulary.index("plot")]


def test_a_manifest_whose_lineage_does_not_hold_together_is_refused(tmp_path):
    store = MemoryStore()
    pushed(store, sized(tmp_path / "a.csv", *range(40)))
    version = appended(store, sized(tmp_path / "b.csv", *range(40, 60))).manifest.version
    key = manifest_key("rows", version)
    whole = json.loads(store.objects[key])
    changes = {
        "additions must lead to version": {"additions": [{**whole["additions"][0], "version": "other"}]},
        "split train must consist of what was appended": {"additions": []},
    }
    for message, change in changes.items():
        store.objects[key] = json.dumps({**whole, **change}).encode()
        with pytest.raises(IntegrityError, match=message):
            read_manifest(store, "rows", version)


# -------------------------------------------------------------------------------------------------------- real places


@pytest.mark.store
def test_rows_are_appended_on_a_real_server_from_a_bucket(store, tmp_path):
    pushed(store, people(tmp_path / "people.csv", range(60)), OPTIONS)
    store.write("incoming/more.csv", people(tmp_path / "more.csv", range(100, 140)).read_bytes())
    manifest = appended(store, f"{store.settings.url}/incoming/more.csv").manifest  # type: ignore[arg-type]
    incomes = [x for split in ("train", "test") for x in contents(open_dataset(store, "rows"), split)[TARGET].tolist()]
    assert sorted(incomes) == [1000 + 3 * i for i in [*range(60), *range(100, 140)]]
    assert not appended(store, tmp_path / "more.csv").changed
    assert manifest.additions[0].source.uri.endswith("incoming/more.csv")


@pytest.mark.ray
@pytest.mark.store
def test_ray_data_appends_what_one_process_appends(store, ray_cluster, tmp_path):
    alone = MemoryStore()
    sized(tmp_path / "a.csv", *range(40))
    sized(tmp_path / "b.csv", *range(20, 80))
    for place in (alone, store):
        pushed(place, tmp_path / "a.csv")
    expected = appended(alone, tmp_path / "b.csv").manifest
    address = ray_cluster.address
    found = push(
        store, str(tmp_path / "b.csv"), name="rows", append=True, on_cluster="always", address=address
    ).manifest
    assert found.model_copy(update={"created": expected.created}) == expected
    with ray_session(ray_cluster.address):
        assert sizes(store) == sizes(alone)
