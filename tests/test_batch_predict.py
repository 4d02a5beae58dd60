"""Batch prediction: an answer for each row, in order, equal to the endpoint's; what is interrupted goes on."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from example_runs import EXAMPLES, JsonMemoryStore, write_run
from PIL import Image
from pyarrow import parquet

from cluster.config import StoreSettings
from cluster.errors import ConfigError, NotFoundError
from cluster.failpoints import VARIABLE
from cluster.session import ray_session, store_environment
from models.config import CNNConfig, FMConfig, MLPConfig, ModelConfig, RNNConfig
from models.features import CategoricalFeature
from orchestrator.batch_predict import BatchPredictions, batch_predict
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.data.sources.options import SourceOptions
from orchestrator.predicting import parts, stored
from serving import deploy, registry
from serving.app import Kind, describe_answer, parse_content
from serving.client import Client

ROOT = Path(__file__).parents[1]
KINDS: Mapping[str, ModelConfig] = {
    "table": MLPConfig(type="mlp", hidden=(8,)),
    "pictures": CNNConfig(type="cnn", channels=(4, 4)),
    "texts": RNNConfig(type="rnn", hidden_size=8),
    "sounds": RNNConfig(type="rnn", hidden_size=8),
    "series": RNNConfig(type="rnn", hidden_size=8),
    "sparse": FMConfig(type="fm", factors=4),
    "ratings": FMConfig(type="fm", factors=4),
}


@dataclass(eq=False)
class Memory(JsonMemoryStore):
    """A store in memory with an address."""

    settings: StoreSettings = field(default_factory=lambda: StoreSettings(url="s3://memory"))


@pytest.fixture
def memory() -> Memory:
    return Memory()


def promoted(store: Any, patch: pytest.MonkeyPatch, kind: str, source: Path, options: SourceOptions | None) -> str:
    """Push a source, and promote an untrained model of it; return its name."""
    manifest = push(store, str(source), name=kind, options=options, on_cluster="never").manifest
    window = {"lookback": 6, "horizon": 3} if kind == "series" else {}
    signature = open_dataset(store, kind).signature(**window)
    patch.setitem(EXAMPLES, kind, (KINDS[kind], signature))
    write_run(store, run=f"{kind}-1", kind=kind, dataset={"name": kind, "version": manifest.version})
    registry.promote(store, run=f"{kind}-1", name=kind)
    return kind


def answers(store: Any, found: BatchPredictions) -> pa.Table:
    files = [store.read(f"{found.folder}/{part.path}") for part in found.manifest.parts]
    return pa.concat_tables([parquet.read_table(io.BytesIO(data)) for data in files])


def asked(store: Any, name: str, kind: Kind, content: bytes) -> dict[str, Any]:
    """What an endpoint answers: the very functions of a replica."""
    model = registry.load(store, name=name, version="v1")
    request, batch = parse_content(kind, content, model.version.signature)
    return describe_answer(kind, request, batch, model.predict(batch), model)


def require_equal(row: Mapping[str, Any], prediction: Mapping[str, Any]) -> None:
    """The numbers may differ in their last bits: the sums of a batch are in another order."""
    for key in ("filled", "unseen"):
        assert (row.get(key) or []) == prediction.get(key, [])
    if "class" in prediction:
        assert row["class"] == prediction["class"]
        assert row["probability"] == pytest.approx(prediction["probability"], abs=1e-5)
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
    elif "forecast" in prediction:
        assert row["forecast"] == [pytest.approx(step, abs=1e-4) for step in prediction["forecast"]]
    else:
        assert row["value"] == pytest.approx(prediction["value"], abs=1e-5)


# ---- what is read


def write_people(path: Path, rows: int, *, target: bool = True) -> Path:
    lines = ["age,savings,job,since" + ",label" * target]
    for i in range(rows):
        age, job = "" if i % 7 == 3 else str(20 + i % 41), "NA" if i % 11 == 5 else ("cook", "pilot", "smith")[i % 3]
        since = f"20{10 + i % 10}-{1 + i % 12:02}-03"
        lines.append(f'{age},"${1000 + i * 13:,}",{job},{since}' + f",{'ab'[i % 2]}" * target)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def people(memory: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    options = SourceOptions(target="label", missing="median", indicators=True, dates=("year", "month"), thousands=",")
    source = write_people(tmp_path / "people.csv", 120)
    source.write_text(source.read_text().replace(",NA,", ",cook,"))
    return promoted(memory, monkeypatch, "table", source, options)


def test_rows_of_a_table_are_answered_as_an_endpoint_answers_them(memory, people, tmp_path):
    source = write_people(tmp_path / "new.csv", 50, target=False)
    source.write_text(source.read_text().replace(",NA,", ",astronaut,"))
    found = batch_predict(memory, people, str(source), on_cluster="never")
    table = answers(memory, found)
    assert table.column("id").to_pylist() == list(range(50))
    header, *lines = source.read_text().splitlines()
    rows = list(csv.DictReader([header, *lines]))
    body = asked(memory, people, "predict", json.dumps(rows).encode())
    for row, prediction in zip(table.to_pylist(), body["predictions"], strict=True):
        require_equal(row, prediction)
    assert table.column("filled").to_pylist()[3] == ["age"]
    assert table.column("unseen").to_pylist()[5] == ["job"]
    assert found.folder.startswith("predictions/table/v1-")
    data = memory.read(f"{found.folder}/{found.manifest.parts[0].path}")
    about = json.loads(parquet.read_schema(io.BytesIO(data)).metadata[b"orchestrator"])
    assert (about["model"], about["version"], about["classes"]) == ("table", "v1", ["a", "b"])
    assert about["weights_sha256"] == body["weights_sha256"]


def test_a_target_may_be_there_and_changes_nothing(memory, people, tmp_path):
    with_target = batch_predict(memory, people, str(write_people(tmp_path / "a.csv", 4)), on_cluster="never")
    without = write_people(tmp_path / "b.csv", 4, target=False)
    again = batch_predict(memory, people, str(without), on_cluster="never")
    assert answers(memory, with_target).equals(answers(memory, again))


def test_several_files_of_rows_keep_their_names(memory, people, tmp_path):
    (tmp_path / "more").mkdir()
    write_people(tmp_path / "more/b.csv", 3)
    write_people(tmp_path / "more/a.csv", 2)
    table = answers(memory, batch_predict(memory, people, str(tmp_path / "more"), on_cluster="never"))
    assert table.column("file").to_pylist() == ["a.csv"] * 2 + ["b.csv"] * 3
    assert table.column("id").to_pylist() == [0, 1, 0, 1, 2]


def test_a_split_of_a_dataset_is_answered_as_it_is_stored_and_all_of_them_without_a_split(memory, people):
    model = registry.load(memory, name=people, version="v1")
    dataset = open_dataset(memory, "table")
    found = batch_predict(memory, people, "table", split="test", on_cluster="never")
    rows = dataset.manifest.splits["test"].rows
    (shard,) = dataset.split("test").shards
    columns = dataset.read_row_group(shard, 0)
    features = model.version.signature.features
    batch = {name: torch.tensor(np.array(columns[name])) for name in features}
    batch |= {n: batch[n].long() for n, feature in features.items() if isinstance(feature, CategoricalFeature)}
    expected = model.predict(batch)
    table = answers(memory, found)
    assert table.column("id").to_pylist() == list(range(rows))
    np.testing.assert_allclose(table.column("probabilities").to_pylist(), expected.numpy(), atol=1e-6)
    every = answers(memory, batch_predict(memory, people, f"table@{dataset.manifest.version}", on_cluster="never"))
    assert every.num_rows == 120
    assert every.filter(pa.compute.equal(every["split"], "test")).drop(["split"]).equals(table.drop(["split"]))


def picture(value: int) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write_files(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_pictures_are_answered_as_an_endpoint_answers_them(memory, monkeypatch, tmp_path):
    known = {f"{'ab'[i % 2]}/{i}.png": picture(i) for i in range(40)}
    name = promoted(memory, monkeypatch, "pictures", write_files(tmp_path / "known", known), None)
    new = {f"deep/{i}.png": picture(100 + i) for i in range(9)} | {"one.png": picture(7)}
    monkeypatch.setattr("orchestrator.predicting.files.PART_FILES", 4)
    found = batch_predict(memory, name, str(write_files(tmp_path / "new", new)), on_cluster="never")
    assert found.manifest.plan.part_rows == (4, 4, 2)
    rows = answers(memory, found).to_pylist()
    assert [row["id"] for row in rows] == sorted(new)
    for row in rows:
        require_equal(row, asked(memory, name, "file", new[row["id"]])["prediction"])
    one = answers(memory, batch_predict(memory, name, str(tmp_path / "new/one.png"), on_cluster="never")).to_pylist()
    assert [row["id"] for row in one] == ["one.png"]


def write_sentences(path: Path) -> list[str]:
    words = ("good", "bad", "film", "fine", "dull", "long", "short", "bright")
    texts = [" ".join(words[(i * k) % 8] for k in range(1, 3 + i % 5)) for i in range(40)]
    rows = "".join(f"{text} {i // 2},{'ab'[i % 2]}\n" for i, text in enumerate(texts))
    path.write_text(f"text,label\n{rows}")
    return texts


def test_texts_of_files_lines_and_a_column_are_answered_as_an_endpoint_answers_them(memory, monkeypatch, tmp_path):
    texts = write_sentences(tmp_path / "known.csv")
    name = promoted(memory, monkeypatch, "texts", tmp_path / "known.csv", None)
    expected = [asked(memory, name, "predict", json.dumps({"text": t}).encode())["prediction"] for t in texts]
    (tmp_path / "new.csv").write_text("text\n" + "\n".join(texts) + "\n")
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n")
    folder = write_files(tmp_path / "files", {f"{i:02}.txt": text.encode() for i, text in enumerate(texts)})
    for source in (tmp_path / "new.csv", tmp_path / "lines.txt", folder):
        found = answers(memory, batch_predict(memory, name, str(source), on_cluster="never")).to_pylist()
        for row, prediction in zip(found, expected, strict=True):
            require_equal(row, prediction)


def sound(length: int) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.random.default_rng(length).integers(-9000, 9000, length).astype("<i2").tobytes())
    return data.getvalue()


def test_sounds_are_answered_as_an_endpoint_answers_them(memory, monkeypatch, tmp_path):
    known = {f"{'ab'[i % 2]}/{i}.wav": sound(900 + i) for i in range(40)}
    name = promoted(memory, monkeypatch, "sounds", write_files(tmp_path / "known", known), None)
    new = {f"{i}.wav": sound(400 + 200 * ((i * 5) % 9)) for i in range(9)}
    rows = answers(memory, batch_predict(memory, name, str(write_files(tmp_path / "new", new)), on_cluster="never"))
    for row in rows.to_pylist():
        require_equal(row, asked(memory, name, "file", new[row["id"]])["prediction"])


@pytest.mark.parametrize("label", ["", "1 "])
def test_sparse_rows_need_no_label(memory, monkeypatch, tmp_path, label):
    lines = [f"{i % 2} {1 + i % 7}:{i % 5 + 0.5} {9 + i % 3}:2" for i in range(60)]
    (tmp_path / "known.svm").write_text("\n".join(lines) + "\n")
    name = promoted(memory, monkeypatch, "sparse", tmp_path / "known.svm", None)
    (tmp_path / "new.svm").write_text(f"{label}1:0.5 3:2\n{label}11:1\n")
    rows = answers(memory, batch_predict(memory, name, str(tmp_path / "new.svm"), on_cluster="never")).to_pylist()
    for row, sample in zip(rows, ({"0": 0.5, "2": 2}, {"10": 1}), strict=True):
        body = asked(memory, name, "predict", json.dumps({"sparse": sample}).encode())
        require_equal(row, body["prediction"])
    (tmp_path / "wide.svm").write_text("0:1\n")
    with pytest.raises(ConfigError, match=r"must have columns 1 to 11, as sparse v1 reads, got column 0"):
        batch_predict(memory, name, str(tmp_path / "wide.svm"), on_cluster="never")


@pytest.mark.parametrize("text", ["user,item\n3,4\n99,5\n", "3\t4\n99\t5\n", "3\t4\t5\t88\n99\t5\t1\t89\n"])
def test_pairs_need_no_rating_and_no_header(memory, monkeypatch, tmp_path, text):
    ratings = [f"{i % 20}\t{i % 11}\t{1 + i % 5}\t88{i:07}" for i in range(200)]
    (tmp_path / "u.data").write_text("\n".join(ratings) + "\n")
    name = promoted(memory, monkeypatch, "ratings", tmp_path / "u.data", None)
    (tmp_path / "new.csv").write_text(text)
    rows = answers(memory, batch_predict(memory, name, str(tmp_path / "new.csv"), on_cluster="never")).to_pylist()
    for row, (user, item) in zip(rows, ((3, 4), (99, 5)), strict=True):
        body = asked(memory, name, "predict", json.dumps({"user": str(user), "item": str(item)}).encode())
        require_equal(row, body["prediction"])
    assert [row["unseen"] for row in rows] == [[], ["user"]]


def write_load(path: Path, days: range) -> Path:
    rows = [f"2024-01-{day:02}T{hour:02}:00,{day * hour % 17}" for day in days for hour in range(24)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["date,load", *rows]) + "\n")
    return path


def test_a_forecast_goes_on_from_each_file_and_from_each_window_of_a_dataset(memory, monkeypatch, tmp_path):
    name = promoted(memory, monkeypatch, "series", write_load(tmp_path / "known.csv", range(1, 6)), None)
    for number in (1, 2):
        write_load(tmp_path / f"new/{number}.csv", range(number, number + 2))
    rows = answers(memory, batch_predict(memory, name, str(tmp_path / "new"), on_cluster="never")).to_pylist()
    assert [row["id"] for row in rows] == ["1.csv", "2.csv"]
    for row in rows:
        last = [[float(line.split(",")[1])] for line in (tmp_path / "new" / row["id"]).read_text().split()[-6:]]
        body = asked(memory, name, "predict", json.dumps({"series": last}).encode())
        require_equal(row, body["prediction"])
    monkeypatch.setattr(stored, "MOST_BYTES", 4 * 6 * 10)
    windows = batch_predict(memory, name, "series", split="train", on_cluster="never")
    assert windows.manifest.rows == open_dataset(memory, "series").manifest.splits["train"].rows - 6 - 3 + 1


# ---- stopping and going on


def test_what_is_there_is_kept_and_the_result_is_the_same_bytes(memory, people, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MOST_ROWS", 8)
    source = str(write_people(tmp_path / "new.csv", 50))
    first = batch_predict(memory, people, source, on_cluster="never")
    before = {key: data for key, data in memory.objects.items() if key.startswith(first.folder)}
    assert len(first.manifest.parts) == 7 and first.manifest.plan.part_rows[-1] == 2
    for key in (f"{first.folder}/manifest.json", f"{first.folder}/{first.manifest.parts[2].path}"):
        del memory.objects[key]
    memory.objects[f"{first.folder}/{first.manifest.parts[4].path}"] = b"PAR1 and something else"
    told: list[tuple[int, int]] = []
    again = batch_predict(memory, people, source, on_cluster="never", progress=lambda *rows: told.append(rows))
    assert {key: data for key, data in memory.objects.items() if key.startswith(first.folder)} == before
    assert (again.resumed_parts, again.new_rows) == (5, 16)
    assert told[0] == (34, 50) and told[-1] == (50, 50)
    memory.log.clear()
    finished = batch_predict(memory, people, source, on_cluster="never")
    assert (finished.new_rows, finished.manifest) == (0, first.manifest)
    assert memory.count("write") == 0


def test_a_source_that_has_changed_has_another_folder_but_not_a_folder_that_is_named(memory, people, tmp_path):
    source = write_people(tmp_path / "new.csv", 5)
    first = batch_predict(memory, people, str(source), out="predictions/mine", on_cluster="never")
    write_people(tmp_path / "new.csv", 6)
    assert first.folder == "predictions/mine" and first.url == "s3://memory/predictions/mine"
    with pytest.raises(ConfigError, match=r"--out must be a folder without other predictions, got predictions/mine"):
        batch_predict(memory, people, str(source), out="s3://memory/predictions/mine", on_cluster="never")
    assert batch_predict(memory, people, str(source), on_cluster="never").manifest.rows == 6


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,savings,job\n1,$2,cook\n", r"must have the columns of table v1, age, savings, job, since, got no since"),
        ("age,savings,job,since,extra\n1,$2,cook,2020-01-01,x\n", "got extra beside them. Mend the file"),
        ("age,savings,job,since\n", "must hold at least 1 row"),
        ("", "must hold at least 1 row, got an empty file"),
        ("age,savings,job,since\n1,2,cook,2020-01-01\n", r"savings in row 2 of .* must be a finite number"),
        ("age,savings,job,since\n1,$2,cook,soon\n", r"since in row 2 of .* must be a date in ISO 8601, got 'soon'"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_written(memory, people, tmp_path, text, message):
    (tmp_path / "new.csv").write_text(text)
    memory.log.clear()
    with pytest.raises(ConfigError, match=message):
        batch_predict(memory, people, str(tmp_path / "new.csv"), on_cluster="never")
    assert memory.count("write") == 0


def test_unknown_models_versions_sources_and_splits_are_refused(memory, people, tmp_path):
    source = str(write_people(tmp_path / "new.csv", 5))
    for name, version, message in (("other", None, "the model must be in the registry"), ("table", "v9", "v9")):
        with pytest.raises(NotFoundError, match=message):
            batch_predict(memory, name, source, version=version)
    with pytest.raises(NotFoundError, match="SOURCE must be a file, a folder, an s3:// address or a dataset"):
        batch_predict(memory, people, "nothing.csv")
    with pytest.raises(ConfigError, match="which does not exist"):
        batch_predict(memory, people, "./nothing.csv")
    with pytest.raises(NotFoundError, match="split of dataset table must be one of train, test, got 'other'"):
        batch_predict(memory, people, "table", split="other")
    with pytest.raises(ConfigError, match="--split must be left out unless the source is a dataset"):
        batch_predict(memory, people, source, split="test")
    with pytest.raises(ConfigError, match="--out must be a folder of its own"):
        batch_predict(memory, people, source, out="models/table")


def test_a_dataset_with_another_vocabulary_is_refused(memory, people, tmp_path):
    other = write_people(tmp_path / "other.csv", 120)
    other.write_text(other.read_text().replace("smith", "baker").replace(",NA,", ",baker,"))
    options = SourceOptions(target="label", missing="median", indicators=True, dates=("year", "month"), thousands=",")
    push(memory, str(other), name="other", options=options, on_cluster="never")
    with pytest.raises(ConfigError, match=r"other@\w+ must have the features of table v1 .* got another one for job"):
        batch_predict(memory, people, "other")


def test_a_damaged_picture_is_named(memory, monkeypatch, tmp_path):
    known = {f"{'ab'[i % 2]}/{i}.png": picture(i) for i in range(40)}
    name = promoted(memory, monkeypatch, "pictures", write_files(tmp_path / "known", known), None)
    write_files(tmp_path / "new", {"whole.png": picture(1), "half.png": picture(2)[:90]})
    with pytest.raises(ConfigError, match=r"new/half.png must be a whole PNG or JPEG picture"):
        batch_predict(memory, name, str(tmp_path / "new"), on_cluster="never")


# ---- the command, a real store and a real cluster


def run(*words: str, store: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    variables = {**os.environ, **store_environment(store.settings), "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "orchestrator", *words, "--json"]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)


def whole(store: Any, folder: str) -> dict[str, bytes]:
    return {info.key.removeprefix(folder): store.read(info.key) for info in store.list(f"{folder}/")}


def test_a_run_that_was_killed_goes_on_where_it_was_and_ends_in_the_same_bytes(store, monkeypatch, tmp_path):
    known = {f"{'ab'[i % 2]}/{i}.png": picture(i) for i in range(40)}
    name = promoted(store, monkeypatch, "pictures", write_files(tmp_path / "known", known), None)
    source = write_files(tmp_path / "new", {f"{i:05}.png": picture(i % 50) for i in range(5000)})
    words = ("batch-predict", name, str(source), "--cluster", "never")
    killed = run(*words, store=store, **{VARIABLE: "predicting.after_part=kill#1"})
    assert killed.returncode == -signal.SIGKILL
    (folder,) = store.folders(f"predictions/{name}")
    left = whole(store, f"predictions/{name}/{folder}")
    assert any(key.endswith(".parquet") for key in left) and "/manifest.json" not in left
    resumed = run(*words, store=store)
    assert resumed.returncode == 0, resumed.stderr
    found = json.loads(resumed.stdout)
    assert found["resumed_parts"] >= 1 and 0 < found["new_rows"] < 5000
    assert sum(part["rows"] for part in found["manifest"]["parts"]) == 5000
    assert "5,000 of 5,000 rows" in resumed.stderr
    assert whole(store, found["folder"]).items() >= left.items()
    straight = run(*words, "--out", "predictions/straight", store=store)
    assert straight.returncode == 0, straight.stderr
    assert whole(store, "predictions/straight") == whole(store, found["folder"])


@pytest.mark.ray
def test_a_cluster_answers_as_the_endpoint_does(ray_cluster, store, monkeypatch, tmp_path):
    options = SourceOptions(target="label", missing="median", indicators=True, thousands=",", dates=("year", "month"))
    table = promoted(store, monkeypatch, "table", write_people(tmp_path / "people.csv", 120), options)
    known = {f"{'ab'[i % 2]}/{i}.png": picture(i) for i in range(40)}
    pictures = promoted(store, monkeypatch, "pictures", write_files(tmp_path / "known", known), None)
    write_sentences(tmp_path / "texts.csv")
    texts = promoted(store, monkeypatch, "texts", tmp_path / "texts.csv", None)
    sources = {table: write_people(tmp_path / "new.csv", 40, target=False), texts: tmp_path / "new-texts.csv"}
    sources[texts].write_text("text\na good film\nbad\n")
    sources[pictures] = write_files(tmp_path / "new", {f"{i}.png": picture(100 + i) for i in range(6)})
    monkeypatch.setattr(parts, "MOST_ROWS", 4)
    monkeypatch.setattr("orchestrator.predicting.files.PART_FILES", 2)
    found = {name: batch_predict(store, name, str(path), on_cluster="always") for name, path in sources.items()}
    assert len(found[table].manifest.parts) == 10
    here = batch_predict(store, table, str(sources[table]), out="predictions/here", on_cluster="never")
    assert here.manifest == found[table].manifest
    files = [sources[pictures] / row["id"] for row in answers(store, found[pictures]).to_pylist()]
    with ray_session(store=store.settings, serves=True):
        urls = {deploy.deploy(store, name=name, port=0).url for name in sources}
        client = Client(urls.pop())
        people = list(csv.DictReader(sources[table].read_text().splitlines()))
        expected = {
            table: client.predict(table, people)["predictions"],
            pictures: [client.predict(pictures, file)["prediction"] for file in files],
            texts: [client.predict(texts, {"text": text})["prediction"] for text in ("a good film", "bad")],
        }
        for name in sources:
            deploy.undeploy(name)
    for name, predictions in expected.items():
        for row, prediction in zip(answers(store, found[name]).to_pylist(), predictions, strict=True):
            require_equal(row, prediction)
    assert any(prediction.get("filled") for prediction in expected[table])


@pytest.mark.ray
def test_a_driver_of_a_cluster_that_was_killed_goes_on(ray_cluster, store, monkeypatch, tmp_path):
    lines = [f"{i},{i % 7},{'ab'[i % 2]}" for i in range(150_000)]
    source = tmp_path / "numbers.csv"
    source.write_text("\n".join(["x,y,label", *lines[:200]]) + "\n")
    name = promoted(store, monkeypatch, "table", source, SourceOptions(target="label"))
    source.write_text("\n".join(["x,y,label", *lines]) + "\n")
    words = ("batch-predict", name, str(source), "--cluster", "always")
    killed = run(*words, store=store, **{VARIABLE: "predicting.driver_after_part=kill#1"})
    assert killed.returncode == -signal.SIGKILL
    resumed = run(*words, store=store)
    assert resumed.returncode == 0, resumed.stderr
    found = json.loads(resumed.stdout)
    assert (found["resumed_parts"] >= 1, len(found["manifest"]["parts"])) == (True, 3)
    straight = batch_predict(store, name, str(source), out="predictions/straight", on_cluster="never")
    assert [part["sha256"] for part in found["manifest"]["parts"]] == [p.sha256 for p in straight.manifest.parts]
    assert answers(store, straight).column("id").to_pylist() == list(range(150_000))
