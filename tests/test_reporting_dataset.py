"""The page about a dataset: every kind of data is shown, from a bounded number of bytes, in one file that is safe."""

import base64
import io
import re
import wave
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_store import MemoryStore
from PIL import Image

from cluster.errors import ConfigError, NotFoundError
from models.features import (
    TARGET,
    AudioFeature,
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    Feature,
    ImageFeature,
    SeriesFeature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from orchestrator.data.columns import SPARSE, Column, Columns, Ragged, number_target
from orchestrator.data.dataset import open_dataset
from orchestrator.data.manifest import Change, DatasetTarget, Run, SeriesTarget, Source
from orchestrator.data.push import push_prepared
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.reporting.dataset import sample as page_module
from orchestrator.reporting.dataset.page import render_page, write_page

random = np.random.default_rng(0)
ROWS = {"train": 60, "test": 30}


class Parsed(HTMLParser):
    """Tags that are never closed, addresses, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def uris(self, media_type: str) -> list[bytes]:
        start = f"data:{media_type};base64,"
        return [base64.b64decode(a.removeprefix(start)) for a in self.addresses if a.startswith(start)]


def page_of(features: dict[str, Feature], target: DatasetTarget, splits: dict[str, Columns]) -> Parsed:
    store = MemoryStore()
    parts = {name: Part.of(columns) for name, columns in splits.items()}
    source = Source(format="test", uri="somewhere", licence="CC BY 4.0")
    push_prepared(
        store,  # type: ignore[arg-type]
        Prepared(name="shown", features=features, target=target, splits=parts, source=source, keeps_order=True),
        leakage="keep",
    )
    html = render_page(open_dataset(store, "shown"))  # type: ignore[arg-type]
    parsed = Parsed(html)
    assert parsed.open == []
    assert all(address.startswith("data:") for address in parsed.addresses)
    assert not re.search(r"https?://|@import|url\(|<script", html)
    assert "CC BY 4.0" in parsed.text
    return parsed


def of_classes(features: dict[str, Feature], make: "dict[str, Column]", classes: tuple[str, ...]) -> Parsed:
    """Show the same rows as train and, cut, as test."""
    rows = {name: column[: ROWS["test"]] for name, column in make.items()}
    labels = np.arange(ROWS["train"]) % len(classes)
    splits = {"train": {**make, TARGET: labels}, "test": {**rows, TARGET: labels[: ROWS["test"]]}}
    return page_of(features, ClassTarget(classes=classes), splits)


def test_pictures_are_shown_by_class() -> None:
    pixels = random.integers(0, 256, (60, 3, 8, 6), np.uint8)
    feature = ImageFeature(shape=(3, 8, 6), mean=(), std=())
    page = of_classes({"image": feature}, {"image": pixels}, ("cat", "dog", "<b>bird</b>"))
    shown = [np.asarray(Image.open(io.BytesIO(data))) for data in page.uris("image/png")]
    assert len(shown) == 30
    np.testing.assert_array_equal(shown[0], pixels[0].transpose(1, 2, 0))
    assert "<b>bird</b>" in page.text
    assert "a picture of 6 × 8, 3 channels" in page.text
    assert "green" in page.text


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_with_other_channels_are_shown_in_grey(channels: int) -> None:
    pixels = random.integers(0, 256, (60, channels, 8, 6), np.uint8)
    feature = ImageFeature(shape=(channels, 8, 6), mean=(), std=())
    page = of_classes({"image": feature}, {"image": pixels}, ("a", "b"))
    assert Image.open(io.BytesIO(page.uris("image/png")[0])).mode == "L"


def encoded(width: int, height: int) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(data, "JPEG")
    return np.frombuffer(data.getvalue(), np.uint8)


def test_boxes_are_drawn_over_pictures() -> None:
    files = Ragged.of([encoded(300 + i, 200) for i in range(60)], dtype=np.uint8)
    box = np.array([[1, 0.25, 0.5, 0.75, 1.0]], np.float32)
    boxes = Ragged.of([box if i % 2 else box[:0] for i in range(60)], dtype=np.float32, width=(5,))
    feature = ImageFeature(encoding="file", shape=(3, 64, 64), mean=(), std=())
    columns: Columns = {"image": files, TARGET: boxes}
    page = page_of(
        {"image": feature}, BoxesTarget(classes=("red cell", "white cell")), {"train": columns, "test": columns}
    )
    sizes = [Image.open(io.BytesIO(data)).size for data in page.uris("image/png")]
    assert all(max(size) == 160 for size in sizes)
    assert "white cell" in page.text
    assert "0.5 objects in a picture, 1 at most" in page.text
    assert "Not in train: red cell." in page.text
    assert "width in pixels" in page.text


def test_sounds_can_be_heard() -> None:
    sounds = Ragged.of([random.integers(-9999, 9999, 100 + 10 * i).astype(np.int16) for i in range(60)], dtype=np.int16)
    page = of_classes({"sound": AudioFeature(sample_rate=100, max_samples=1000)}, {"sound": sounds}, ("yes", "no"))
    first, *others = page.uris("audio/wav")
    assert len(others) == 5
    with wave.open(io.BytesIO(first)) as file:
        assert (file.getframerate(), file.getnframes()) == (100, 100)
        assert file.readframes(100) == sounds[0].tobytes()
    assert "3.95 s on average, 6.90 s at most" in page.text


def test_texts_are_shown_in_words() -> None:
    texts = Ragged.of([np.array([2, 1, 3 + i % 2], np.int32) for i in range(60)], dtype=np.int32)
    feature = TextFeature(vocabulary=("a", "<script>", "film"), max_tokens=50)
    page = of_classes({"text": feature}, {"text": texts}, ("bad", "good"))
    assert re.search(r"a\s*\?\s*<script>", page.text)
    assert "33.3 % of the words in text of test are not in the vocabulary." in page.text
    assert "3.0 words on average, 3 at most" in page.text
    assert "script" not in page.tags


def test_numbers_and_categories_are_shown_as_a_table() -> None:
    rows = random.normal(size=(60, 2)).astype(np.float32)
    rows[:, 1] = 7
    columns: Columns = {
        "city": (np.arange(60) % 3).astype(np.int32),
        "size": rows,
        TARGET: rows[:, 0] * 100,
    }
    test = {**columns, "size": rows + np.float32(50), TARGET: columns[TARGET] - 1000}  # type: ignore[operator]
    features: dict[str, Feature] = {
        "city": CategoricalFeature(vocabulary=("Rome", "Oslo")),
        "size": VectorFeature(names=("width", "height"), mean=(0.0, 7.0), std=(1.0, 1.0)),
    }
    target = number_target(columns[TARGET])  # type: ignore[arg-type]
    page = page_of(features, target, {"train": columns, "test": test})
    assert "unseen" in page.text and "Oslo" in page.text
    assert "Values that training never saw, in rows of test: city in 33.3 %." in page.text
    assert "The same in every row of train that was read: height." in page.text
    assert re.search(r"In test the mean is more than .* from that of train: width \(\d", page.text)
    assert re.search(r"In test the mean is more than .* from that of train: target \(\d", page.text)


def test_sparse_rows_are_shown_by_what_is_in_them() -> None:
    rows = Ragged.of([np.array([(i, 1.5), (i + 40, 2)], SPARSE) for i in range(60)], dtype=SPARSE)
    page = of_classes({"words": SparseFeature(columns=200)}, {"words": rows}, ("a", "b"))
    assert "0: 1.5, 40: 2" in page.text
    assert "2.0 numbers that are not 0 in a row, 1.0 % of the columns" in page.text


def test_a_series_is_plotted_with_its_splits() -> None:
    values = np.stack([np.sin(np.arange(900) / 9), np.full(900, 3)], 1).astype(np.float32)
    feature = SeriesFeature(channels=("tide", "depth"), mean=(0.0, 3.0), std=(1.0, 1.0))
    columns = {"train": values[:600], "validation": values[600:700], "test": values[700:]}
    page = page_of({"series": feature}, SeriesTarget(), {name: {"series": x} for name, x in columns.items()})
    assert page.tags.count("path") == 2
    assert "The same in every row of train that was read: depth." in page.text
    assert "600 rows in train, 100 rows in validation, 200 rows in test" in page.text


def paths_of(html: str) -> list[str]:
    return re.findall(r'<path d="([^"]*)"', html)


def series_page(columns: dict[str, np.ndarray], target: SeriesTarget, changes: tuple[Change, ...] = ()) -> str:
    store, feature = MemoryStore(), SeriesFeature(channels=("x",), mean=(0.0,), std=(1.0,))
    prepared = Prepared(
        name="line",
        features={"series": feature},
        target=target,
        splits={split: Part.of({"series": values}) for split, values in columns.items()},
        source=Source(format="test", uri="somewhere", changes=changes),
    )
    push_prepared(store, prepared)  # type: ignore[arg-type]
    return render_page(open_dataset(store, "line"))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [11, 70, 350, 699, 700, 701, 5000])
def test_the_line_of_a_series_begins_where_it_is_and_is_whole(rows: int) -> None:
    values = np.sin(np.arange(rows, dtype=np.float32))[:, None]
    (path,) = paths_of(series_page({"train": values[: rows // 2], "test": values[rows // 2 :]}, SeriesTarget()))
    assert path.startswith("M")  # nothing at all is drawn of a path that begins otherwise
    assert path.count("M") == 1
    assert path.count("L") + 1 >= min(rows, 700)


def test_the_line_of_a_series_is_broken_where_rows_are_missing() -> None:
    values = np.arange(50, dtype=np.float32)[:, None]
    target = SeriesTarget(runs={"train": (Run(10), Run(30)), "test": (Run(4, 4), Run(6, 0))})
    (path,) = paths_of(series_page({"train": values[:40], "test": values[40:]}, target))
    lines = [line.count("L") + 1 for line in path.split("M")[1:]]
    assert lines == [10, 30, 6]


def test_rows_that_belong_to_the_split_before_are_not_counted() -> None:
    values = np.arange(100, dtype=np.float32)[:, None]
    splits = {"train": Part.of({"series": values[:60]}), "test": Part.of({"series": values[40:]}, context_rows=20)}
    store = MemoryStore()
    feature = SeriesFeature(channels=("x",), mean=(0.0,), std=(1.0,))
    source = Source(format="test", uri="somewhere")
    prepared = Prepared(name="line", features={"series": feature}, target=SeriesTarget(), splits=splits, source=source)
    push_prepared(store, prepared)  # type: ignore[arg-type]
    sampled = page_module.sample(open_dataset(store, "line"), "test")  # type: ignore[arg-type]
    assert (sampled.rows, sampled.total_rows, sampled.is_all) == (40, 40, True)
    np.testing.assert_array_equal(sampled.columns["series"], values[60:])  # type: ignore[arg-type]


def test_classes_that_a_split_lacks_and_imbalance_are_named() -> None:
    labels = np.array([0] * 55 + [1] * 5)
    columns: Columns = {"x": random.normal(size=(60, 1)).astype(np.float32), TARGET: labels}
    test: Columns = {"x": columns["x"][:55], TARGET: labels[:55]}
    feature = VectorFeature(names=("x",), mean=(0.0,), std=(1.0,))
    page = page_of({"x": feature}, ClassTarget(classes=("common", "rare")), {"train": columns, "test": test})
    assert "Not in test: rare." in page.text
    assert "Classes are not balanced: common is 11 times as frequent as rare." in page.text
    assert "sorted" not in page.text


def test_more_is_read_until_every_class_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "SPLIT_BYTES", 1)
    rows = 8 * 1024
    columns: Columns = {"x": random.normal(size=(rows, 4)).astype(np.float32), TARGET: np.arange(rows) // 1024}
    features: dict[str, Feature] = {"x": VectorFeature(names=tuple("abcd"), mean=(0.0,) * 4, std=(1.0,) * 4)}
    target = ClassTarget(classes=tuple("01234567"))
    assert "from 8,192 of 8,192 rows" in page_of(features, target, {"train": columns, "test": columns}).text
    monkeypatch.setattr(page_module, "_MOST_BYTES", 1)
    page = page_of(features, target, {"train": columns, "test": columns})
    assert "from 1,024 of 8,192 rows" in page.text
    assert "Not in the 1,024 rows of train that were read: 1, 2, 3, 4, 5, 6, 7." in page.text


def test_only_some_row_groups_are_read_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 16 * 1024
    columns: Columns = {
        "x": random.normal(size=(rows, 4)).astype(np.float32),
        TARGET: np.sort(np.arange(rows) % 4),  # of one class in each row group, were they not shuffled
    }
    store = MemoryStore()
    feature = VectorFeature(names=tuple("abcd"), mean=(0.0,) * 4, std=(1.0,) * 4)
    prepared = Prepared(
        name="big",
        features={"x": feature},
        target=ClassTarget(classes=tuple("abcd")),
        splits={"train": Part.of(columns), "test": Part.of(columns)},
        source=Source(format="test", uri="somewhere"),
    )
    push_prepared(store, prepared, leakage="keep")  # type: ignore[arg-type]
    total = sum(len(data) for key, data in store.objects.items() if "train" in key)
    monkeypatch.setattr(page_module, "SPLIT_BYTES", total // 3)
    store.log.clear()
    page = Parsed(render_page(open_dataset(store, "big")))  # type: ignore[arg-type]
    assert store.count("read_range") == 2 * (5 + 1)  # row groups and a footer of each split
    assert "from 5,120 of 16,384 rows" in page.text
    assert "times as frequent as the rarest, in the 5,120 rows that were read." in page.text
    assert "Not in" not in page.text


def test_what_was_changed_is_on_the_page_under_one_label() -> None:
    changes = (
        Change(text="filled 3 missing values of age"),
        Change(text="left out 2 files:", names=("a.txt", "b.txt")),
        Change(option="gaps=split", text="12 gaps"),
    )
    page = series_page({"train": np.ones((9, 1), np.float32)}, SeriesTarget(), changes=changes)
    pairs = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page)
    at = pairs.index(("Prepared", "filled 3 missing values of age"))
    assert pairs[at + 1 : at + 3] == [("", "left out 2 files: a.txt, b.txt"), ("gaps=split", "12 gaps")]


def test_the_page_is_written_to_a_file(tmp_path: Path) -> None:
    store = MemoryStore()
    columns: Columns = {"x": np.zeros((60, 1), np.float32), TARGET: np.arange(60) % 2}
    feature = VectorFeature(names=("x",), mean=(0.0,), std=(1.0,))
    prepared = Prepared(
        name="small",
        features={"x": feature},
        target=ClassTarget(classes=("a", "b")),
        splits={"train": Part.of(columns), "test": Part.of(columns)},
        source=Source(format="test", uri="somewhere"),
    )
    push_prepared(store, prepared, leakage="keep")  # type: ignore[arg-type]
    path = write_page(store, "small", path=tmp_path / "small.html")  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")
    with pytest.raises(ConfigError, match=r"--html must be a file that can be written, got .*: No such file"):
        write_page(store, "small", path=tmp_path / "none" / "small.html")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match=r"data\.name must be a dataset in the store, got 'other'"):
        write_page(store, "other", path=tmp_path / "x.html")  # type: ignore[arg-type]
