"""Objects of the store that nest, grow or lie: a line each, exit code 100, and none of them hides another."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.errors import IntegrityError
from cluster.s3.store import Store
from orchestrator.data.dataset import open_dataset
from orchestrator.data.manifest import Manifest
from orchestrator.data.push import push
from orchestrator.runs.attempts import begin_attempt, read_attempts
from orchestrator.runs.checkpoint import newest_valid
from orchestrator.runs.lease import read_lease
from orchestrator.runs.record import read_run
from serving import golden as serving_golden
from serving import registry as serving_registry
from tests.example_runs import JsonMemoryStore, write_run
from tests.hostile import Commands, commands, require_modest, require_refused

DEEP = b'{"a": ' * 50_000
BRACKETS = b"[" * 50_000
LARGE = b'{"a": "' + b"x" * 60_000_000 + b'"}'
LISTS = b'{"a": [' + b"[]," * 3_000_000 + b"[]]}"
ERRORS = b'{"metrics": {' + b",".join(b'"m%d": "x"' % i for i in range(10_000)) + b"}}"
KEYS = b"{" + b",".join(b'"m%d": 1' % i for i in range(10_001)) + b"}"
WIDE_TEXT = '{"a": "日'.encode("utf-16")
BODIES = {
    "objects in objects": (DEEP, "got lists and objects nested more than 32 deep."),
    "brackets": (BRACKETS, "got lists and objects nested more than 32 deep."),
    "60 MB": (LARGE, "must have at most 33,554,432 bytes, got 60,000,009."),
    "lists": (LISTS, "got more than 125,000 lists, objects and keys."),
    "keys": (KEYS, "got an object of more than 10,000 keys."),
    "thousands of errors": (ERRORS, "got an error at "),
    "UTF-16": (WIDE_TEXT, "got Invalid JSON: "),
    "nothing": (b"", "got Invalid JSON: EOF while parsing"),
}


@pytest.fixture(scope="module")
def command() -> Iterator[Commands]:
    with commands() as found:
        yield found


@pytest.fixture
def shop(store: Store) -> Store:
    """A store with a run, a model of it, and a dataset."""
    write_run(store, run="r1", kind="table")
    serving_registry.promote(store, run="r1", name="good")
    serving_registry.promote(store, run="r1", name="m")
    return store


# ---- models


@pytest.mark.store
@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_model_is_refused_in_one_line_and_hides_no_other(name: str, command: Commands, shop: Store) -> None:
    body, message = BODIES[name]
    shop.write("models/m/v1/model.json", body)
    shown = command.run(["models", "show", "m"], store=shop)
    require_refused(shown, code=100, message=message)
    assert "models/m/v1/model.json must " in shown.stderr
    listed = command.run(["models", "ls"], store=shop)
    assert listed.code == 0 and "good" in listed.stdout and "damaged: models/m/v1/model.json must" in listed.stderr
    require_modest(listed)


def changed(store: Any, key: str, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(store.read(key))
    change(record)
    store.write(key, json.dumps(record).encode())


def with_classes(count: int) -> Callable[[dict[str, Any]], object]:
    names = [str(i) for i in range(count)]
    return lambda record: record["signature"]["target"].update(kind="class", classes=names)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "zero classes": (with_classes(0), "at signature.target.class.classes: Tuple should have at least 1 item after"),
    "a million classes": (with_classes(1_000_000), "classes: Tuple should have at most 100000 items after validation"),
    "classes that are numbers": (
        lambda record: record["signature"]["target"].update(classes=[1] * 1_000_000),
        "at signature.target.class.classes.0: Input should be a valid string",
    ),
    "100,000 blocks": (
        lambda record: record["model"].update(hidden=[1] * 100_000),
        "at model.mlp.hidden: Tuple should have at most 100 items after validation, not 100000",
    ),
    "a wide layer": (lambda record: record["model"].update(hidden=[2**40]), "less than or equal to 65536"),
    "another name": (lambda record: record.update(name="good"), "m/v1/model.json must describe m v1, got good v1."),
    "an escape sequence": (
        lambda record: record.update({"\x1b]0;title\x07": 1}),
        "at \\x1b]0;title\\x07: Extra inputs are not permitted",
    ),
}


@pytest.mark.store
@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_asks_for_too_much_is_refused(name: str, command: Commands, shop: Store) -> None:
    change, message = CHANGES[name]
    changed(shop, "models/m/v1/model.json", change)
    require_refused(command.run(["models", "show", "m"], store=shop), code=100, message=message)


@pytest.mark.store
@pytest.mark.parametrize(
    "model",
    [
        {"type": "mlp", "hidden": [65_536] * 100},
        {"type": "fm", "factors": 65_536},
        {"type": "rnn", "hidden_size": 65_536, "layers": 100},
    ],
)
def test_no_network_is_allocated_before_its_size_is_compared_with_the_weights(
    model: dict[str, Any], command: Commands, shop: Store
) -> None:
    changed(shop, "runs/r1/run.json", lambda record: record["experiment"].update(model=model))
    ended = command.run(["models", "promote", "r1", "another"], store=shop)
    require_refused(ended, code=100, message="must hold weights that fit its model configuration")


def test_weights_that_are_larger_than_their_network_are_not_fetched() -> None:
    memory = JsonMemoryStore()
    write_run(memory, run="r1", kind="table")
    serving_registry.promote(memory, run="r1", name="m")
    memory.write("models/m/v1/weights.safetensors", bytes(2**21))
    with pytest.raises(
        IntegrityError, match=r"m/v1/weights.safetensors must have at most 1,0\d\d,\d+ bytes, got 2,097,"
    ):
        serving_registry.load(memory, name="m", version="v1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda golden: golden.update(outputs=[]), "must hold one answer, with shape and data, got ValueError"),
        (lambda golden: golden.update(outputs=[{}]), "must hold one answer, with shape and data, got KeyError: 'data'"),
        (lambda golden: golden["outputs"][0].update(data=["x"]), "must hold one answer, .* got (TypeError|ValueError)"),
        (lambda golden: golden["outputs"][0].update(data=[[1], [1, 2]]), "must hold one answer, .* got ValueError"),
        (lambda golden: golden["outputs"][0].update(shape=[2**40]), "must hold one answer, .* got RuntimeError"),
        (lambda golden: golden["outputs"][0].update(shape="x"), "must hold one answer, .* got TypeError"),
        (lambda golden: golden["outputs"][0].update(data=[1], shape=[1]), "must answer .* with shape"),
        (
            lambda golden: golden.update(request={"inputs": [1]}),
            "golden.json of m v1 must be a request the model reads",
        ),
        (lambda golden: golden.update(request=[]), "golden.json must be what this version of orchestrator writes"),
    ],
)
def test_a_bad_golden_example_is_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    memory = JsonMemoryStore()
    write_run(memory, run="r1", kind="table")
    serving_registry.promote(memory, run="r1", name="m")
    changed(memory, "models/m/v1/golden.json", change)
    with pytest.raises(IntegrityError, match=message):
        serving_golden.check_golden(
            serving_registry.load(memory, name="m", version="v1"),
            serving_golden.read_golden(memory, name="m", version="v1"),
        )


# ---- every other record

RECORDS: dict[str, tuple[str, list[str]]] = {
    "champion": ("models/m/aliases/champion.json", ["models", "show", "m"]),
    "claim": ("models/m/v1/claim.json", ["models", "promote", "r1", "m"]),
    "run": ("runs/r1/run.json", ["show", "r1"]),
    "metrics": ("runs/r1/metrics.jsonl", ["show", "r1"]),
    "sweep": ("sweeps/s/sweep.json", ["report", "s"]),
    "search": ("searches/s/search.json", ["report", "s"]),
    "manifest": ("datasets/d/0123456789ab/manifest.json", ["data", "show", "d"]),
}


@pytest.mark.store
@pytest.mark.parametrize("body", [DEEP, LISTS, LARGE])
@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_record_is_refused_in_one_line(name: str, body: bytes, command: Commands, shop: Store) -> None:
    key, words = RECORDS[name]
    shop.write(key, body)
    require_refused(command.run(words, store=shop), code=100, message=f"{key}")


@pytest.mark.store
def test_a_damaged_run_or_dataset_hides_no_other(command: Commands, shop: Store) -> None:
    version = push(shop, "sklearn:digits").manifest.version
    write_run(shop, run="r2", kind="table")
    shop.write("runs/r1/run.json", DEEP)
    shop.write("runs/R 3/run.json", b"{}")
    shop.write("datasets/digits/0123456789ab/manifest.json", b"\xff")
    shop.write("datasets/\x1b[2J/0123456789ab/manifest.json", b"{}")
    runs, data = command.run(["runs"], store=shop), command.run(["data", "ls"], store=shop)
    assert runs.code == data.code == 0
    assert "r2" in runs.stdout and version in data.stdout
    assert "damaged: runs/r1/run.json must be a run's record, got lists and objects nested more" in runs.stderr
    assert "damaged: runs/R 3 must be 1 to 63 of a-z" in runs.stderr
    assert "damaged: datasets/digits/0123456789ab/manifest.json must be a manifest of this program" in data.stderr
    assert "damaged: datasets/\\x1b[2J must be 1 to 63 of a-z" in data.stderr
    for ended in (runs, data):
        require_modest(ended)
        assert len(ended.stderr.strip().splitlines()) == 2


def manifest_with(store: Store, change: Callable[[dict[str, Any]], object]) -> str:
    manifest = push(store, "sklearn:digits").manifest
    key = f"datasets/{manifest.name}/{manifest.version}/manifest.json"
    changed(store, key, change)
    return key


@pytest.mark.store
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["splits"].update({"../x": m["splits"]["test"]}), "at splits.../x.[key]: String should match"),
        (lambda m: m["features"]["image"].update(shape=[1, 10**9, 10**9]), "shape"),
        (lambda m: m["features"]["image"].update(shape=[1000, 8, 8]), "shape must be 1 to 16 channels of at most"),
        (lambda m: m["target"].update(classes=[]), "at target.class.classes: Tuple should have at least 1 item"),
        (
            lambda m: m["splits"]["test"].update(shards=[1] * 200_000),
            "at splits.test.shards.0: Input should be an object",
        ),
    ],
)
def test_a_manifest_that_lies_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, command: Commands, store: Store
) -> None:
    key = manifest_with(store, change)
    ended = command.run(["data", "show", "digits"], store=store)
    require_refused(ended, code=100, message=message)
    assert f"{key} must be a manifest of this program" in ended.stderr


@pytest.mark.store
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["features"]["image"].update(shape=[1, 7, 9]),
        lambda m: m.update(features={"other": m["features"]["image"]}),
    ],
)
def test_a_manifest_of_another_shape_than_its_shards_is_refused(
    change: Callable[[dict[str, Any]], object], store: Store
) -> None:
    manifest_with(store, change)
    dataset = open_dataset(store, "digits")
    with pytest.raises(IntegrityError, match=r"row group 0 of shard .*parquet must hold what its manifest says, got "):
        dataset.read_row_group(dataset.split("train").shards[0], 0)


@pytest.mark.store
def test_a_row_group_of_more_rows_than_recorded_is_not_decoded(store: Store) -> None:
    manifest_with(store, lambda m: None)
    dataset = open_dataset(store, "digits")
    shard = dataset.split("train").shards[0]
    group = shard.row_groups[0].model_copy(update={"rows": shard.row_groups[0].rows - 1})
    with pytest.raises(
        IntegrityError, match=r"must hold what its manifest says, got ValueError: \d+ rows of \d+ bytes"
    ):
        dataset.fetch_row_group(shard.model_copy(update={"row_groups": (group, *shard.row_groups[1:])}), 0)


def test_a_row_group_of_more_rows_than_bytes_is_no_record() -> None:
    assert Manifest.model_fields  # the rule is one of its parts
    from orchestrator.data.manifest import RowGroup

    with pytest.raises(ValueError, match=r"rows must be at most the bytes of their row group \(9\), got 1000000000"):
        RowGroup(rows=10**9, offset=4, bytes=9, sha256="0" * 64)


# ---- what goes on without a damaged object


def test_a_hostile_checkpoint_is_passed_over() -> None:
    memory = JsonMemoryStore()
    record = write_run(memory, run="r1", kind="table")
    good = newest_valid(memory, run="r1")
    assert good and good.prefix == record["checkpoint"]
    for step, name in enumerate(("manifest.json", "progress.json"), start=20):
        prefix = f"runs/r1/checkpoints/{step:08d}-{record['checkpoint'].rstrip('/')[-8:]}/"
        copy_checkpoint(memory, record["checkpoint"], prefix, step=step, damaged=name)
    found = newest_valid(memory, run="r1")
    assert found and found.prefix == record["checkpoint"]
    assert len(found.passed_over) == 2 and all("nested more than 32 deep" in reason for reason in found.passed_over)


def copy_checkpoint(memory: JsonMemoryStore, old: str, new: str, *, step: int, damaged: str) -> None:
    """Copy a checkpoint; one file is hostile, and its SHA-256 is as recorded."""
    files = {key.removeprefix(old): body for key, body in memory.objects.items() if key.startswith(old)}
    files[damaged] = DEEP
    if damaged != "manifest.json":
        manifest = json.loads(files["manifest.json"])
        manifest["step"] = step
        manifest["files"][damaged] = {"bytes": len(DEEP), "sha256": hashlib.sha256(DEEP).hexdigest()}
        files["manifest.json"] = json.dumps(manifest).encode()
    marker = next(name for name in files if "." not in name)
    files[marker] = hashlib.sha256(files["manifest.json"]).hexdigest().encode()
    memory.objects |= {new + name: body for name, body in files.items()}


def test_a_hostile_attempt_is_left_out_of_the_receipt() -> None:
    memory = JsonMemoryStore()
    begin_attempt(memory, "r1", workers=1)
    memory.write("runs/r1/attempts/0002.json", DEEP)
    assert [attempt.number for attempt in read_attempts(memory, "r1")] == [1]


def test_a_hostile_lease_says_what_to_do() -> None:
    memory = JsonMemoryStore()
    memory.write("runs/r1/lease.json", DEEP)
    with pytest.raises(IntegrityError, match=r"lease.json must be a lease, got lists and objects nested .* Delete it"):
        read_lease(memory, run="r1")


@pytest.mark.parametrize("created", ["", "yesterday", "0001-01-01"])
def test_a_run_of_no_time_is_damaged(created: str) -> None:
    memory = JsonMemoryStore()
    write_run(memory, run="r1", kind="table")
    changed(memory, "runs/r1/run.json", lambda record: record.update(created=created, state="running"))
    with pytest.raises(IntegrityError, match=r"must be a run's record, got an error at created: .* time in ISO 8601"):
        read_run(memory, "r1")


# ---- the terminal


@pytest.mark.store
def test_no_control_character_of_an_object_reaches_the_terminal(command: Commands, shop: Store) -> None:
    bad = "\x1b[31m\u202e[bold]x[/]\x9b2J\nr9"
    changed(shop, "models/m/v1/model.json", lambda record: record["lineage"].update(run=bad))
    shop.write("models/m/v1/card.md", bad.encode())
    shown = r"\x1b[31m\u202e[bold]x[/]\x9b2J"
    assert shown + r"\nr9" in command.run(["models", "ls"], store=shop).stdout
    card = command.run(["models", "show", "m"], store=shop)
    assert shown + "\nr9" in card.stdout
    require_modest(card)
