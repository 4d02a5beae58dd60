"""A checkpoint is used only when every byte is as it was written."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import LeaseLostError, PreconditionError
from orchestrator.runs.checkpoint import (
    FILES,
    MANIFEST,
    MARKER,
    Progress,
    State,
    checkpoint_prefixes,
    collect_garbage,
    list_checkpoints,
    load_checkpoint,
    newest_valid,
    prune,
    recover,
    save_checkpoint,
)
from tests.fake_store import MemoryStore

RUN = "run"


def state(update: int) -> State:
    progress = Progress(
        epoch=update, update=update, logical_workers=2, dataset_version="v", environment={}, history=[{"epoch": 1.0}]
    )
    return State(
        {"w": torch.full((3, 4), float(update))}, {"w.momentum_buffer": torch.full((3, 4), update + 0.5)}, progress
    )


def saved(*updates: int) -> Any:
    store = MemoryStore()
    for update in updates:
        save_checkpoint(store, run=RUN, attempt=f"{update:08x}", state=state(update))  # type: ignore[arg-type]
    return store


@cache
def two_checkpoints() -> MemoryStore:
    return saved(1, 2)  # type: ignore[no-any-return]


def test_what_is_saved_comes_back() -> None:
    found = newest_valid(saved(1, 2), run=RUN)
    assert found is not None
    assert found.state.progress == state(2).progress
    assert torch.equal(found.state.weights["w"], state(2).weights["w"])
    assert found.passed_over == []


def test_there_is_nothing_to_resume_in_an_empty_run() -> None:
    assert newest_valid(MemoryStore(), run=RUN) is None  # type: ignore[arg-type]


DAMAGES = ("flip", "cut", "empty", "missing", "longer", "stale", "mixed", "alone", "manifest")
OTHER_MANIFESTS = ("torn", "version", "step", "attempt", "fewer", "more", "elsewhere", "size", "hash")


def damaged(store: Any, data: st.DataObject) -> str:
    """Damage the newer of two checkpoints in any way that leaves it marked or not; return a file that must be named."""
    folder, before = f"runs/{RUN}/checkpoints/00000002-00000002/", f"runs/{RUN}/checkpoints/00000001-00000001/"
    name = data.draw(st.sampled_from([*FILES, MANIFEST, MARKER]))
    body = store.objects[folder + name]
    place = data.draw(st.integers(0, len(body) - 1))
    match data.draw(
        st.sampled_from(["flip", "cut", "empty", "missing", "longer", "stale", "mixed", "alone", "manifest"])
    ):
        case "flip":
            flipped = bytes([body[place] ^ 1 << data.draw(st.integers(0, 7))])
            store.objects[folder + name] = body[:place] + flipped + body[place + 1 :]
        case "cut":
            store.objects[folder + name] = body[:place]
        case "empty":
            store.objects[folder + name] = b""
        case "missing":
            del store.objects[folder + name]
        case "longer":
            store.objects[folder + name] = body + data.draw(st.binary(min_size=1, max_size=9))
        case "stale":
            store.objects[folder + name] = store.objects[before + name]
        case "mixed":  # up to the whole other checkpoint
            for mixed in data.draw(st.sets(st.sampled_from([*FILES, MANIFEST, MARKER]), min_size=1)):
                store.objects[folder + mixed] = store.objects[before + mixed]
            return ""
        case "alone":
            for other in {*FILES, MANIFEST, MARKER} - {name}:
                del store.objects[folder + other]
            return MANIFEST if name == MARKER else MARKER
        case "manifest":  # whose marker fits
            return rewritten_manifest(store, folder, data)
    return name


def rewritten_manifest(store: Any, folder: str, data: st.DataObject) -> str:
    manifest = json.loads(store.objects[folder + MANIFEST])
    named = MANIFEST
    match data.draw(
        st.sampled_from(["torn", "version", "step", "attempt", "fewer", "more", "elsewhere", "size", "hash"])
    ):
        case "torn":
            body = store.objects[folder + MANIFEST]
            return signed(store, folder, body[: data.draw(st.integers(0, len(body) - 1))])
        case "version":
            manifest["format_version"] = data.draw(st.sampled_from([-1, 0, 2, 99]))
        case "step":
            manifest["step"] = data.draw(st.sampled_from([0, 1, 3]))
        case "attempt":
            manifest["attempt"] = "00000001"
        case "fewer":
            del manifest["files"][data.draw(st.sampled_from(FILES))]
        case "more":
            manifest["files"]["more"] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        case "elsewhere":
            manifest["files"]["../../../etc/passwd"] = manifest["files"].pop(data.draw(st.sampled_from(FILES)))
        case "size":
            named = data.draw(st.sampled_from(FILES))
            manifest["files"][named]["bytes"] += data.draw(st.sampled_from([-1, 1]))
        case "hash":
            named = data.draw(st.sampled_from(FILES))
            manifest["files"][named]["sha256"] = hashlib.sha256(b"").hexdigest()
    signed(store, folder, json.dumps(manifest).encode())
    return named


def signed(store: Any, folder: str, manifest: bytes) -> str:
    store.objects[folder + MANIFEST] = manifest
    store.objects[folder + MARKER] = hashlib.sha256(manifest).hexdigest().encode()
    return MANIFEST


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_any_damage_is_noticed_and_the_checkpoint_before_is_taken(data: st.DataObject) -> None:
    store = MemoryStore(objects=dict(two_checkpoints().objects))
    name = damaged(store, data)
    found = newest_valid(store, run=RUN)  # type: ignore[arg-type]
    assert found is not None
    assert found.state.progress == state(1).progress
    (reason,) = found.passed_over
    assert "00000002-00000002/" in reason
    assert name in reason


DTYPES = (
    "float32", "float64", "float16", "bfloat16", "complex64", "int8", "uint8", "int16", "int32", "int64", "bool",
)  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype, shape and memory layout; any bits, so NaN with a payload too."""
    dtype = getattr(torch, draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=source)
    tensor = values[..., 0] > 127 if dtype == torch.bool else values.view(dtype)[..., 0]  # strided where of many bytes
    match draw(st.sampled_from(["as it is", "contiguous", "transposed", "sliced", "expanded"])):
        case "contiguous":
            return tensor.contiguous()
        case "transposed":
            return tensor.permute(list(reversed(range(tensor.ndim))))
        case "sliced":
            return tensor[::2] if tensor.ndim else tensor
        case "expanded":
            return tensor.unsqueeze(0).expand(3, *tensor.shape)
    return tensor


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: (
            t.dtype,
            tuple(t.shape),
            t.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, t in tensors.items()
    }


NAMED_TENSORS = st.dictionaries(st.text("ab.0_-/ é", max_size=6), tensors(), max_size=3)
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=1000, deadline=None)
@given(
    NAMED_TENSORS,
    NAMED_TENSORS,
    st.lists(st.dictionaries(st.sampled_from(["epoch", "loss"]), ANY_FLOAT), max_size=3),
    ANY_FLOAT,
)
def test_every_good_checkpoint_is_taken_bit_for_bit(
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    history: list[dict[str, float]],
    loss_sum: float,
) -> None:
    store = saved(1)
    progress = state(2).progress.model_copy(update={"history": history, "loss_sum": loss_sum, "step": 3, "samples": 4})
    save_checkpoint(store, run=RUN, attempt="ffffffff", state=State(weights, optimizer, progress))
    found = newest_valid(store, run=RUN)
    assert found is not None
    assert found.passed_over == []
    assert bits(found.state.weights) == bits(weights)
    assert bits(found.state.optimizer) == bits(optimizer)
    assert repr(found.state.progress) == repr(progress)


def test_what_is_passed_over_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    store = saved(1, 2)
    key = f"runs/{RUN}/checkpoints/00000002-00000002/weights.safetensors"
    store.objects[key] = b""
    newest_valid(store, run=RUN)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{key} must match its SHA-256, got 0 bytes of" in record.getMessage()


def test_a_stray_object_beside_the_files_changes_nothing_and_goes_with_them() -> None:
    store = saved(1, 2)
    stray = f"runs/{RUN}/checkpoints/00000002-00000002/a-folder/notes.txt"
    store.objects[stray] = b"mine"
    found = newest_valid(store, run=RUN)
    assert found is not None
    assert found.state.progress.update == 2
    assert bits(found.state.weights) == bits(state(2).weights)
    save_checkpoint(store, run=RUN, attempt="00000003", state=state(3))
    prune(store, run=RUN, keep=1)
    assert stray not in store.objects


@pytest.mark.parametrize(
    ("name", "added"),
    [("by-epoch", {}), ("by-step", {"step": 5, "loss_sum": 448.25, "samples": 640, "lease": 3})],
)
def test_checkpoints_of_every_released_version_load(name: str, added: dict[str, Any]) -> None:
    store: Any = MemoryStore()
    folder = Path(__file__).parent / f"golden/checkpoint-1-{name}"
    for file in folder.glob("*/*"):
        store.objects[f"runs/golden/checkpoints/{file.relative_to(folder)}"] = file.read_bytes()
    found = newest_valid(store, run="golden")
    assert found is not None
    assert found.prefix == "runs/golden/checkpoints/00000012-0a1b2c3d/"
    assert bits(found.state.weights) == bits(
        {
            "layers.0.weight": torch.tensor([[-0.5, -0.25, 0.0], [0.25, 0.5, 0.75]]),
            "layers.0.bias": torch.tensor([0.1, -0.0]),
            "norm.num_batches_tracked": torch.tensor(7),
            "half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
            "none": torch.zeros(0, 3),
        }
    )
    assert bits(found.state.optimizer) == bits(
        {
            "layers.0.weight.momentum_buffer": torch.full((2, 3), 1 / 3),
            "layers.0.weight.step": torch.tensor(12.0),
        }
    )
    assert found.state.progress == Progress(
        epoch=3,
        update=12,
        logical_workers=4,
        dataset_version="3f2a",
        environment={"torch": "2.13.0+cpu", "threads": "1"},
        history=[{"epoch": float(epoch), "train_loss": 0.7 / epoch} for epoch in (1, 2, 3)],
        **added,
    )


def test_a_byte_damaged_on_its_way_does_not_cost_the_checkpoint() -> None:
    store, seen = saved(1, 2), set[str]()

    def damage_each_first_read(key: str, data: bytes) -> bytes:
        first = key not in seen and MARKER not in key
        seen.add(key)
        return data[:-1] + bytes([data[-1] ^ 1]) if first else data

    store.damage = damage_each_first_read
    found = newest_valid(store, run=RUN)
    assert found is not None
    assert found.state.progress.update == 2
    assert found.passed_over == []


def test_two_attempts_at_one_step_do_not_mix() -> None:
    store = saved(1)
    save_checkpoint(store, run=RUN, attempt="aaaaaaaa", state=state(2))
    save_checkpoint(store, run=RUN, attempt="bbbbbbbb", state=state(2))
    assert len(list(checkpoint_prefixes(store, run=RUN))) == 3
    for prefix in checkpoint_prefixes(store, run=RUN):
        load_checkpoint(store, prefix=prefix)


def test_a_checkpoint_is_never_overwritten() -> None:
    store = saved(1)
    before = dict(store.objects)
    with pytest.raises(PreconditionError):
        save_checkpoint(store, run=RUN, attempt="00000001", state=state(1))
    assert store.objects == before


@pytest.mark.parametrize(
    "newest",
    [
        '{"owner": "7-a", "host": "b", "number": 5}',
        '{"owner": "7-a", "host": "b", "number": 4, "released": true}',
        None,
    ],
)
def test_without_its_lease_a_checkpoint_gets_no_marker(newest: str | None) -> None:
    store = saved(1)
    mine = state(2)._replace(progress=state(2).progress.model_copy(update={"lease": 4}))
    if newest:
        store.objects[f"runs/{RUN}/lease.json"] = json.dumps(
            {"owner": "7-a", "host": "b"} | json.loads(newest)
        ).encode()
    with pytest.raises(LeaseLostError):
        save_checkpoint(store, run=RUN, attempt="ffffffff", state=mine)
    found = newest_valid(store, run=RUN)
    assert found is not None
    assert found.state.progress.update == 1
    assert [c.complete for c in list_checkpoints(store, run=RUN)] == [False, True]


def steps(store: Any) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(store, run=RUN)]


def unmarked(store: Any, *updates: int) -> None:
    for update in updates:
        del store.objects[f"runs/{RUN}/checkpoints/{update:08d}-{update:08x}/{MARKER}"]


def emptied(store: Any, *updates: int) -> None:
    for update in updates:
        store.objects[f"runs/{RUN}/checkpoints/{update:08d}-{update:08x}/weights.safetensors"] = b""


def test_only_the_newest_are_kept_and_unfinished_ones_before_them_go() -> None:
    store = saved(1, 2, 3, 4, 5, 6)
    unmarked(store, 2, 4, 6)
    removed = prune(store, run=RUN, keep=2)
    assert steps(store) == [6, 5, 3]  # the newest may still be under way
    assert [int(prefix.split("/")[-2][:8]) for prefix in removed] == [1, 4, 2]


def test_pruning_reads_one_checkpoint_and_only_before_one_goes() -> None:
    store = saved(1, 2, 3)
    prune(store, run=RUN, keep=3)
    assert store.count("read") == 0
    prune(store, run=RUN, keep=2)
    assert store.count("read") == len(FILES) + 2
    assert {key.split("/")[-2][:8] for operation, key in store.log if operation == "read"} == {"00000003"}


@pytest.mark.parametrize(
    ("empty", "left"),
    [
        ([], [5, 4]),
        ([5], [5, 4]),
        ([5, 4], [5, 4, 3]),  # 4 and 5 are no checkpoints to resume from
        ([5, 4, 3], [5, 4, 2]),
        ([5, 4, 3, 2, 1], [5, 4, 3, 2, 1]),  # perhaps they are whole, and it is the reading that fails
    ],
)
def test_the_only_valid_checkpoint_is_never_pruned(empty: list[int], left: list[int]) -> None:
    store = saved(1, 2, 3, 4, 5)
    emptied(store, *empty)
    prune(store, run=RUN, keep=2)
    assert steps(store) == left


def test_garbage_is_what_no_resume_can_use() -> None:
    store = saved(1, 2, 3)
    unmarked(store, 1, 3)
    found = collect_garbage(store, run=RUN, dry_run=True)
    assert [(c.step, len(c.keys), c.complete) for c in found] == [(3, 4, False), (1, 4, False)]
    assert [c.bytes for c in found] == [sum(len(store.objects[key]) for key in c.keys) for c in found]
    assert steps(store) == [3, 2, 1]
    assert collect_garbage(store, run=RUN, dry_run=False) == found
    assert steps(store) == [2]


def test_a_recovery_says_why_newer_checkpoints_are_not_used() -> None:
    store = saved(1, 2, 3, 4)
    unmarked(store, 1, 4)
    emptied(store, 3)
    restored, passed_over = recover(store, run=RUN)
    assert restored is not None
    assert restored.state.progress.update == 2
    folder = f"runs/{RUN}/checkpoints/"
    assert passed_over[0] == f"{folder}00000004-00000004/COMPLETE must exist, got an unfinished upload."
    assert passed_over[1].startswith(f"{folder}00000003-00000003/weights.safetensors must match its SHA-256")
    assert len(passed_over) == 2
    assert steps(store) == [3, 2]


def test_a_recovery_that_finds_nothing_valid_says_why() -> None:
    store = saved(1)
    emptied(store, 1)
    restored, passed_over = recover(store, run=RUN)
    assert restored is None
    assert len(passed_over) == 1


def test_steps_are_ordered_by_number_however_many_digits_they_have() -> None:
    store = saved(99_999_999, 100_000_000, 7)
    assert steps(store) == [100_000_000, 99_999_999, 7]
    assert newest_valid(store, run=RUN).state.progress.update == 100_000_000  # type: ignore[union-attr]


def test_foreign_folders_are_ignored() -> None:
    store = saved(1)
    for name in ("..", "99999999-zzzzzzzz", "latest", "00000009"):
        store.objects[f"runs/{RUN}/checkpoints/{name}/{MARKER}"] = b"x"
    assert [p.split("/")[-2] for p in checkpoint_prefixes(store, run=RUN)] == ["00000001-00000001"]
