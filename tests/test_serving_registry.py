"""The registry: versions are immutable, complete or invisible, and the champion changes atomically."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from example_runs import EXAMPLES, JsonMemoryStore, write_run

from cluster.errors import ConfigError, IntegrityError, NotFoundError, StoreUnavailableError
from models.network import build, example_batch
from serving import golden as serving_golden
from serving import registry as serving_registry


@pytest.fixture
def memory() -> JsonMemoryStore:
    return JsonMemoryStore()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_promoted_model_answers_as_the_trained_one(memory, kind):
    record = write_run(memory, run="r1", kind=kind, seed=3)
    version = serving_registry.promote(memory, run="r1", name="m")
    loaded = serving_registry.load(memory, name="m", version=version.version)
    serving_golden.check_golden(loaded, serving_golden.read_golden(memory, name="m", version="v1"))
    model, signature = EXAMPLES[kind]
    trained = build(model.model_copy(update={"initial_std": 0.5}), version.techniques, signature, seed=3).eval()
    batch = example_batch(signature, size=5, seed=9)
    assert torch.equal(loaded.predict(batch), trained.predict(batch).detach())
    assert (version.metrics, version.lineage.run) == (record["metrics"], "r1")


def test_promote_writes_a_version_and_makes_it_champion(memory):
    write_run(memory, run="r1", kind="table")
    version = serving_registry.promote(memory, run="r1", name="iris")
    assert version.version == serving_registry.champion(memory, "iris") == "v1"
    files = {key.removeprefix("models/iris/v1/") for key in memory.objects if key.startswith("models/iris/v1/")}
    assert files == {"claim.json", "weights.safetensors", "golden.json", "card.md", "model.json"}
    assert serving_registry.show(memory, name="iris") == version
    assert serving_registry.models(memory) == ["iris"]
    card = memory.read("models/iris/v1/card.md").decode()
    assert "# iris v1" in card and version.weights_sha256 in card and "| accuracy | 0.5 |" in card


def test_promoting_a_run_again_returns_its_version_and_changes_no_byte(memory):
    write_run(memory, run="r1", kind="table")
    first = serving_registry.promote(memory, run="r1", name="iris")
    before = dict(memory.objects)
    assert serving_registry.promote(memory, run="r1", name="iris") == first
    assert memory.objects == before


def test_versions_are_numbered_and_sorted_as_numbers(memory):
    for index in range(11):
        write_run(memory, run=f"r{index}", kind="ratings", seed=index)
        serving_registry.promote(memory, run=f"r{index}", name="films")
    assert [v.version for v in serving_registry.versions(memory, "films")] == [f"v{n}" for n in range(1, 12)]


def test_concurrent_promotes_get_versions_of_their_own(memory):
    runs = [f"r{index}" for index in range(8)]
    for index, run in enumerate(runs):
        write_run(memory, run=run, kind="ratings", seed=index)
    with ThreadPoolExecutor(8) as pool:
        promoted = [*pool.map(lambda run: serving_registry.promote(memory, run=run, name="films"), runs)]
    assert sorted(v.version for v in promoted) == [f"v{n}" for n in range(1, 9)]
    assert {v.lineage.run for v in serving_registry.versions(memory, "films")} == set(runs)
    champion, _ = serving_registry._read_champion(memory, "films")
    assert sorted([champion.version, *champion.history]) == [f"v{n}" for n in range(1, 9)]


def test_concurrent_promotes_of_one_run_make_one_version(memory):
    write_run(memory, run="r1", kind="ratings")
    with ThreadPoolExecutor(8) as pool:
        promoted = [*pool.map(lambda _: serving_registry.promote(memory, run="r1", name="films"), range(8))]
    assert {v.version for v in promoted} == {"v1"}
    assert len({v.created + v.weights_sha256 for v in promoted}) == 1
    assert len(serving_registry.versions(memory, "films")) == 1


def test_a_promote_cut_short_anywhere_leaves_the_champion_and_can_be_completed():
    operations = _operations_of_second_promote()
    for cut in range(len(operations)):
        store = _store_with_champion()
        _fail_at(store, cut)
        with pytest.raises(StoreUnavailableError):
            serving_registry.promote(store, run="r2", name="m")
        store.before = lambda operation, key: None
        assert serving_registry.load(store, name="m", version=serving_registry.champion(store, "m"))
        assert serving_registry.champion(store, "m") == "v1"
        assert serving_registry.promote(store, run="r2", name="m").version == "v2"
        assert [v.version for v in serving_registry.versions(store, "m")] == ["v1", "v2"]
        assert serving_registry.champion(store, "m") == "v2"


def _store_with_champion() -> JsonMemoryStore:
    store = JsonMemoryStore()
    for index, run in enumerate(("r1", "r2")):
        write_run(store, run=run, kind="ratings", seed=index)
    serving_registry.promote(store, run="r1", name="m")
    return store


def _operations_of_second_promote() -> list[tuple[str, str]]:
    store = _store_with_champion()
    store.log.clear()
    serving_registry.promote(store, run="r2", name="m")
    return list(store.log)


def _fail_at(store: JsonMemoryStore, cut: int) -> None:
    count = iter(range(10_000))

    def before(operation: str, key: str) -> None:
        if next(count) == cut:
            raise StoreUnavailableError(f"no answer to {operation} {key}")

    store.before = before


def test_rollback_walks_back_and_set_champion_goes_anywhere(memory):
    for index in range(3):
        write_run(memory, run=f"r{index}", kind="ratings", seed=index)
        serving_registry.promote(memory, run=f"r{index}", name="m")
    assert serving_registry.rollback(memory, "m").version == "v2"
    assert serving_registry.rollback(memory, "m").version == "v1"
    with pytest.raises(NotFoundError, match="another champion to roll back to, got only v1"):
        serving_registry.rollback(memory, "m")
    serving_registry.set_champion(memory, name="m", version="v3")
    assert serving_registry.champion(memory, "m") == "v3"
    assert serving_registry.rollback(memory, "m").version == "v1"


def test_damaged_weights_are_refused(memory):
    write_run(memory, run="r1", kind="table")
    serving_registry.promote(memory, run="r1", name="m")
    key = "models/m/v1/weights.safetensors"
    memory.objects[key] = _flip_last_bit(memory.objects[key])
    with pytest.raises(IntegrityError, match=r"weights.safetensors must match its SHA-256"):
        serving_registry.load(memory, name="m", version="v1")


def _flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_damaged_upload_never_becomes_a_version(memory):
    write_run(memory, run="r1", kind="table")
    memory.damage = lambda key, data: _flip_last_bit(data) if key == "models/m/v1/weights.safetensors" else data
    with pytest.raises(IntegrityError, match="must hold what was uploaded"):
        serving_registry.promote(memory, run="r1", name="m")
    with pytest.raises(NotFoundError):
        serving_registry.versions(memory, "m")


def test_a_damaged_checkpoint_is_refused(memory):
    record = write_run(memory, run="r1", kind="table")
    memory.objects[record["checkpoint"] + "weights.safetensors"] += b"x"
    with pytest.raises(IntegrityError, match=r"checkpoints/00000010-\w{8}/weights.safetensors must match"):
        serving_registry.promote(memory, run="r1", name="m")


def test_weights_of_another_shape_are_refused(memory):
    record = write_run(memory, run="r1", kind="table")
    record["experiment"]["model"]["hidden"] = [9]
    memory.write_json("runs/r1/run.json", record)
    with pytest.raises(IntegrityError, match="must hold weights that fit its model configuration"):
        serving_registry.promote(memory, run="r1", name="m")


def test_another_answer_than_the_golden_one_is_refused(memory):
    write_run(memory, run="r1", kind="table")
    serving_registry.promote(memory, run="r1", name="m")
    golden = json.loads(memory.objects["models/m/v1/golden.json"])
    golden["outputs"][0]["data"][0] += 0.01
    memory.write_json("models/m/v1/golden.json", golden)
    with pytest.raises(IntegrityError, match=r"must answer its golden request as recorded, got a difference of 0.01"):
        serving_golden.check_golden(
            serving_registry.load(memory, name="m", version="v1"),
            serving_golden.read_golden(memory, name="m", version="v1"),
        )


def test_a_model_without_finite_answers_is_not_promoted(memory):
    record = write_run(memory, run="r1", kind="ratings")
    _replace_weights(memory, record, float("nan"))
    with pytest.raises(ConfigError, match="run r1 must give finite answers to be promoted"):
        serving_registry.promote(memory, run="r1", name="m")


def _replace_weights(memory: JsonMemoryStore, record: dict, value: float) -> None:
    from hashlib import sha256

    from safetensors.torch import load, save

    prefix = record["checkpoint"]
    tensors = load(memory.read(prefix + "weights.safetensors"))
    weights = save({k: torch.full_like(t, value) if t.is_floating_point() else t for k, t in tensors.items()})
    manifest = memory.read_json(prefix + "manifest.json")
    manifest["files"]["weights.safetensors"] = {"bytes": len(weights), "sha256": sha256(weights).hexdigest()}
    memory.write(prefix + "weights.safetensors", weights)
    memory.write_json(prefix + "manifest.json", manifest)


@pytest.mark.parametrize("changes", [{"state": "running"}, {"state": "failed"}, {"checkpoint": None}])
def test_an_unfinished_run_is_not_promoted(memory, changes):
    write_run(memory, run="r1", kind="table", **changes)
    with pytest.raises(ConfigError, match="run r1 must be finished to be promoted"):
        serving_registry.promote(memory, run="r1", name="m")


def test_a_checkpoint_outside_the_run_is_refused(memory):
    write_run(memory, run="r1", kind="table", checkpoint="runs/other/checkpoints/00000010-0a0b0c0d/")
    with pytest.raises(IntegrityError, match="run r1 must name a checkpoint of its own"):
        serving_registry.promote(memory, run="r1", name="m")


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a" * 64, "a..b", "ü", "a\0"])
def test_names_that_are_no_key_are_refused(memory, name):
    write_run(memory, run="r1", kind="table")
    with pytest.raises(ConfigError, match="name must be 1 to 63"):
        serving_registry.promote(memory, run="r1", name=name)


def test_what_does_not_exist_is_named(memory):
    write_run(memory, run="r1", kind="table")
    with pytest.raises(NotFoundError, match="the run must exist, got 'r9'"):
        serving_registry.promote(memory, run="r9", name="m")
    serving_registry.promote(memory, run="r1", name="m")
    with pytest.raises(NotFoundError, match="got 'x'; it has: m"):
        serving_registry.champion(memory, "x")
    with pytest.raises(NotFoundError, match="got 'x'; it has: m"):
        serving_registry.rollback(memory, "x")
    with pytest.raises(NotFoundError, match="got m v9"):
        serving_registry.set_champion(memory, name="m", version="v9")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"version": 1}', b"\xff"])
def test_a_damaged_record_is_an_integrity_error(memory, body):
    write_run(memory, run="r1", kind="table")
    serving_registry.promote(memory, run="r1", name="m")
    memory.objects["models/m/v1/model.json"] = body
    with pytest.raises(IntegrityError, match=r"model.json must be what this version of orchestrator writes"):
        serving_registry.load(memory, name="m", version="v1")


@pytest.mark.store
def test_the_registry_works_on_a_real_server(store):
    for index in range(3):
        write_run(store, run=f"r{index}", kind="table", seed=index)
    with ThreadPoolExecutor(3) as pool:
        promoted = [*pool.map(lambda i: serving_registry.promote(store, run=f"r{i}", name="m"), range(3))]
    assert sorted(v.version for v in promoted) == ["v1", "v2", "v3"]
    champion = serving_registry.champion(store, "m")
    assert serving_registry.rollback(store, "m").version != champion
    serving_golden.check_golden(
        serving_registry.load(store, name="m", version="v2"), serving_golden.read_golden(store, name="m", version="v2")
    )
