"""The commands for datasets: what push suggests works for every kind of data, and says what was found."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_training_trainer import write_pictures, write_rows, write_sounds, write_texts

from orchestrator.cli import run_command_line
from tests.fake_store import MemoryStore


def write_table(folder: Path) -> Path:
    lines = [f"{i},{'red' if i % 3 else 'blue'},{'yes' if i % 2 else 'no'}" for i in range(60)]
    folder.mkdir()
    (folder / "table.csv").write_text("\n".join(["size,colour,label", *lines]))
    return folder / "table.csv"


def write_numbers(folder: Path) -> Path:
    folder.mkdir()
    (folder / "numbers.csv").write_text("\n".join(["size,target", *(f"{i},{i * 1.5}" for i in range(60))]))
    return folder / "numbers.csv"


def write_series(folder: Path) -> Path:
    folder.mkdir()
    rows = [f"2024-01-{day:02}T{hour:02}:00,{day * hour}" for day in range(1, 4) for hour in range(24)]
    (folder / "series.csv").write_text("\n".join(["date,load", *rows]))
    return folder / "series.csv"


def write_ratings(folder: Path) -> Path:
    folder.mkdir()
    rows = [f"{i % 20}\t{i % 11}\t{1 + i % 5}\t88{i:07}" for i in range(200)]
    (folder / "u.data").write_text("\n".join(rows) + "\n")
    return folder / "u.data"


def write_boxes(folder: Path) -> Path:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    names = [f"p{i}" for i in range(12)]
    for number, name in enumerate(names):
        Image.fromarray(np.full((40, 60, 3), 10 * number, np.uint8)).save(folder / f"JPEGImages/{name}.jpg")
        (folder / f"Annotations/{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>60</width><height>40</height></size><object>"
            f"<name>{'cat' if number % 2 else 'dog'}</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax>"
            "<ymax>20</ymax></bndbox></object></annotation>"
        )
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(names[:8]))
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(names[8:]))
    return folder


SOURCES: dict[str, Any] = {
    "table": write_table,
    "numbers": write_numbers,
    "series": write_series,
    "ratings": write_ratings,
    "boxes": write_boxes,
    "pictures": write_pictures,
    "texts": write_texts,
    "sounds": write_sounds,
    "rows": write_rows,
    "digits": lambda _: "sklearn:digits",
    "china": lambda _: "sklearn:china",
    "elnino": lambda _: "statsmodels:elnino",
}
SHOWN = {
    "table": "target: one of 2 classes: no, yes",
    "numbers": "numbers: 1 number: size target: a number from",
    "series": "target: the series itself, some steps ahead",
    "ratings": "target: a number from 1 to 5",
    "boxes": "target: a box around each object of 2 classes: cat, dog",
    "pictures": "target: one of 2 classes: blue, red",
    "texts": "text: a text, of which the first",
    "sounds": "samples a second",
    "rows": "sparse: a row of",
    "digits": "a picture of 8 × 8, grey",
    "china": "target: a number from",
    "elnino": "target: the series itself, some steps ahead",
}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """The store of every command of a test; what the command line sets for a whole process is undone."""
    store = MemoryStore()
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr("orchestrator.commands.data.store_at", lambda url: store)
    return store


ERRORS = " stderr: "
MODELS = {
    "pictures": "cnn",
    "boxes": "cnn",
    "digits": "cnn",
    "series": "rnn",
    "elnino": "rnn",
    "texts": "rnn",
    "sounds": "rnn",
}


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command and all that it prints, in one line."""
    monkeypatch.setattr(sys, "argv", ["orchestrator", *words])
    with pytest.raises(SystemExit) as ended:
        run_command_line()
    found = capsys.readouterr()
    return int(ended.value.code or 0), " ".join(f"{found.out}{ERRORS}{found.err}".split())


@pytest.mark.parametrize("kind", SOURCES)
def test_what_push_suggests_works_for_every_kind_of_data(
    kind: str, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(SOURCES[kind](tmp_path / kind))
    code, said = typed(["data", "push", source, "--name", kind], monkeypatch, capsys)
    assert code == 0, said
    suggested = re.findall(
        r"orchestrator (?!train)(.+?)(?= orchestrator |$)", said.partition("Next:")[2].partition(ERRORS)[0]
    )
    assert f"data show {kind} --html {kind}.html" in suggested and len(suggested) > 1
    for words in suggested:
        code, shown = typed(shlex.split(words), monkeypatch, capsys)
        assert code == 0, (words, shown)
    code, shown = typed(["data", "show", kind], monkeypatch, capsys)
    assert code == 0 and SHOWN[kind] in shown, shown
    window = {"lookback": 6, "horizon": 2} if MODELS.get(kind) == "rnn" and kind in ("series", "elnino") else {}
    experiment = {
        "data": {"name": kind, **window},
        "model": {"type": MODELS.get(kind, "fm")},
        "train": {"epochs": 1, "learning_rate": 0.1},
    }
    (tmp_path / "my.yaml").write_text(json.dumps(experiment))
    code, checked = typed(["check", "my.yaml"], monkeypatch, capsys)
    assert code == 0 and f"name: {kind}" in checked, checked
    assert (tmp_path / f"{kind}.html").read_text().startswith("<!doctype html>")
    code, listed = typed(["data", "ls"], monkeypatch, capsys)
    assert code == 0 and kind in listed
    code, again = typed(["data", "push", source, "--name", kind], monkeypatch, capsys)
    assert code == 0 and again.startswith(f"unchanged {kind}")


def test_the_examples_of_help_work_one_after_the_other(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_ratings(tmp_path / "ml-100k")
    for words in (["push"], ["ls"], ["show"]):
        _, told = typed(["data", *words, "--help"], monkeypatch, capsys)
        example = re.findall(r"orchestrator (data \w+[^A-Z│]*?) (?=[A-Z])", told.partition("Usage:")[2])
        assert len(example) == 1, told
        code, said = typed(shlex.split(example[0]), monkeypatch, capsys)
        assert code == 0 and "movielens-100k" in said, said


def test_a_card_names_as_many_files_as_the_page_and_counts_the_rest(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_pictures(tmp_path / "pictures")
    for i in range(14):
        (source / f"blue/x{i:02}.png").write_bytes(b"no picture")
    words = ["data", "push", str(source), "--name", "pictures", "--option", "damaged=skip"]
    code, said = typed(words, monkeypatch, capsys)
    assert code == 0, said
    _, shown = typed(["data", "show", "pictures", "--html", str(tmp_path / "p.html")], monkeypatch, capsys)
    names = ", ".join(f"blue/x{i:02}.png" for i in range(12)) + " and 2 more"
    for text in (said, shown, (tmp_path / "p.html").read_text()):
        assert f"could not be read and were left out. {names}" in text, text[:3000]


def test_an_unknown_option_is_answered_with_those_of_the_source_s_format(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_series(tmp_path / "series"))
    code, said = typed(["data", "push", source, "--option", "gap=split"], monkeypatch, capsys)
    assert code == 2
    assert "option must be one of those of series, split_sizes, date, date_order, item, ignore, decimal, tho" in said
    assert said.endswith("got 'gap'. Did you mean gaps?")
    code, said = typed(["data", "push", "sklearn:digits", "-o", "seeds=1"], monkeypatch, capsys)
    assert (code, "one of those of sklearn:digits, seed," in said) == (2, True)
    code, said = typed(["data", "push", "s3://bucket/x", "-o", "gap=split"], monkeypatch, capsys)
    assert (code, said.endswith("got 'gap'. Did you mean gaps?")) == (2, True)
    assert store.objects == {}


def test_append_says_what_was_appended_to_what_and_so_does_show(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_table(tmp_path / "a")
    _, pushed = typed(["data", "push", str(source), "--json"], monkeypatch, capsys)
    old = json.loads(pushed.partition(ERRORS)[0])["manifest"]["version"]
    more = tmp_path / "table.csv"
    more.write_text("size,colour,label\n" + "".join(f"{i},green,yes\n" for i in range(100, 120)))
    code, said = typed(["data", "push", str(more), "--append"], monkeypatch, capsys)
    assert code == 0
    assert f"appended to table version {old}: this is version " in said
    assert f"16 train, 4 test rows of {more} appended to version {old} 20 values of colour are none of its" in said
    code, told = typed(["data", "push", str(more), "--name", "table", "--append", "--json"], monkeypatch, capsys)
    answer = json.loads(told.partition(ERRORS)[0])
    (addition,) = answer["manifest"]["additions"]
    assert (code, answer["changed"], addition["appended_to"]) == (0, False, old)
    assert addition["rows"] == {"train": 16, "test": 4}
    assert [shard["version"] for shard in answer["manifest"]["splits"]["train"]["shards"]] == [old, None]
    code, shown = typed(["data", "show", "table"], monkeypatch, capsys)
    assert (
        code == 0
        and f"version {addition['version']}: 16 train, 4 test rows of {more} appended to version {old}" in shown
    )
    code, said = typed(["data", "push", str(more), "--append", "--to", addition["appended_to"]], monkeypatch, capsys)
    assert code == 0 and said.startswith(f"unchanged table version {addition['version']}: it has these rows already")
    code, said = typed(["data", "push", str(more), "--to", old], monkeypatch, capsys)
    assert (code, f"to must be left out unless rows are appended, got {old}. Add --append." in said) == (2, True)


def test_keys_and_server_of_a_source_belong_to_a_bucket(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = typed(["data", "push", "sklearn:digits", "--source-profile", "team"], monkeypatch, capsys)
    assert code == 2
    assert "--source-profile and --source-endpoint must be left out unless the source is s3://…, got sklearn" in said
