"""A checkpoint is used only when every byte is as it was written."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import IntegrityError
from orchestrator.checkpoint import (
    MARKER,
    Progress,
    State,
    checkpoint_prefixes,
    load_checkpoint,
    load_optimizer_tensors,
    newest_valid,
    optimizer_tensors,
    prune,
    save_checkpoint,
)
from tests.fake_store import MemoryStore

RUN = "run"


def state(update: int) -> State:
    progress = Progress(
        epoch=update, update=update, logical_workers=2, dataset_version="v", environment={}, history=[{"epoch": 1.0}]
    )
    return State({"w": torch.full((3, 4), float(update))}, {"w.momentum_buffer": torch.ones(3, 4)}, progress)


def saved(*updates: int) -> Any:
    store = MemoryStore()
    for update in updates:
        save_checkpoint(store, run=RUN, attempt=f"{update:08x}", state=state(update))  # type: ignore[arg-type]
    return store


def test_what_is_saved_comes_back() -> None:
    found = newest_valid(saved(1, 2), run=RUN)
    assert found is not None
    assert found.state.progress == state(2).progress
    assert torch.equal(found.state.weights["w"], state(2).weights["w"])
    assert found.passed_over == []


def test_there_is_nothing_to_resume_in_an_empty_run() -> None:
    assert newest_valid(MemoryStore(), run=RUN) is None  # type: ignore[arg-type]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_damage_is_noticed_and_the_checkpoint_before_is_taken(data: st.DataObject) -> None:
    store = saved(1, 2)
    keys = sorted(k for k in store.objects if "00000002-" in k)
    key = data.draw(st.sampled_from(keys))
    body = store.objects[key]
    how = data.draw(st.sampled_from(["flip", "cut", "empty", "missing", "longer", "older"]))
    place = data.draw(st.integers(0, max(0, len(body) - 1)))
    match how:
        case "flip":
            changed = bytearray(body)
            changed[place] ^= 1 << data.draw(st.integers(0, 7))
            store.objects[key] = bytes(changed)
        case "cut":
            store.objects[key] = body[:place]
        case "empty":
            store.objects[key] = b""
        case "missing":
            del store.objects[key]
        case "longer":
            store.objects[key] = body + b"\0"
        case "older":
            older = store.objects[key.replace("00000002-00000002", "00000001-00000001")]
            if older == body:  # the two optimizer files are alike
                return
            store.objects[key] = older
    found = newest_valid(store, run=RUN)
    assert found is not None
    assert found.state.progress.update == 1
    assert len(found.passed_over) == 1
    assert "00000002-00000002" in found.passed_over[0]


def test_a_byte_damaged_on_its_way_does_not_cost_the_checkpoint() -> None:
    store, seen = saved(1, 2), set[str]()

    def damage_each_first_read(key: str, data: bytes) -> bytes:
        first = key not in seen and "safetensors" in key
        seen.add(key)
        return data[:-1] + bytes([data[-1] ^ 1]) if first else data

    store.damage = damage_each_first_read
    found = newest_valid(store, run=RUN)
    assert found is not None
    assert found.state.progress.update == 2
    assert found.passed_over == []


def test_a_crash_at_any_write_leaves_the_checkpoint_before() -> None:
    for crash_at in range(5):
        store = saved(1)
        writes = iter(range(100))

        def crash(operation: str, key: str, writes: Any = writes, crash_at: int = crash_at) -> None:
            if operation == "write" and next(writes) == crash_at:
                raise ConnectionError

        store.before = crash
        with pytest.raises(ConnectionError):
            save_checkpoint(store, run=RUN, attempt="ffffffff", state=state(2))
        store.before = lambda operation, key: None
        found = newest_valid(store, run=RUN)
        assert found is not None
        assert found.state.progress.update == 1


def test_two_attempts_at_one_step_do_not_mix() -> None:
    store = saved(1)
    save_checkpoint(store, run=RUN, attempt="aaaaaaaa", state=state(2))
    save_checkpoint(store, run=RUN, attempt="bbbbbbbb", state=state(2))
    assert len(list(checkpoint_prefixes(store, run=RUN))) == 3
    for prefix in checkpoint_prefixes(store, run=RUN):
        load_checkpoint(store, prefix=prefix)


def test_only_the_newest_are_kept_and_half_written_older_ones_go() -> None:
    store = saved(1, 2, 3, 4)
    half = next(p for p in checkpoint_prefixes(store, run=RUN) if "00000002-" in p)
    store.delete([half + MARKER])
    removed = prune(store, run=RUN, keep=2)
    assert [p.split("/")[-2][:8] for p in checkpoint_prefixes(store, run=RUN)] == ["00000004", "00000003"]
    assert len(removed) == 2


def test_foreign_folders_are_ignored() -> None:
    store = saved(1)
    for name in ("..", "99999999-zzzzzzzz", "latest", "00000009"):
        store.objects[f"runs/{RUN}/checkpoints/{name}/{MARKER}"] = b"x"
    assert [p.split("/")[-2] for p in checkpoint_prefixes(store, run=RUN)] == ["00000001-00000001"]


def test_a_manifest_that_names_a_file_elsewhere_is_refused() -> None:
    import hashlib

    store = saved(1)
    (prefix,) = checkpoint_prefixes(store, run=RUN)
    body = store.objects[prefix + "manifest.json"].replace(b"weights.safetensors", b"../../../etc/passwd")
    store.objects[prefix + "manifest.json"] = body
    store.objects[prefix + MARKER] = hashlib.sha256(body).hexdigest().encode()
    with pytest.raises(IntegrityError, match="must name files of its own folder"):
        load_checkpoint(store, prefix=prefix)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_continues_as_if_it_had_never_stopped(kind: Any) -> None:
    source = random.Random(0)
    gradients = [torch.tensor([source.gauss(0, 1) for _ in range(6)]).view(2, 3) for _ in range(6)]
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def steps(weight: torch.Tensor, optimizer: torch.optim.Optimizer, todo: list[torch.Tensor]) -> None:
        for gradient in todo:
            weight.grad = gradient.clone()
            optimizer.step()

    whole = torch.zeros(2, 3, requires_grad=True)
    steps(whole, kind([whole], lr=0.1, **options), gradients)
    first = torch.zeros(2, 3, requires_grad=True)
    optimizer = kind([first], lr=0.1, **options)
    steps(first, optimizer, gradients[:3])
    second = first.detach().clone().requires_grad_()
    resumed = kind([second], lr=0.1, **options)
    load_optimizer_tensors(resumed, ["w"], optimizer_tensors(optimizer, ["w"]))
    steps(second, resumed, gradients[3:])
    assert torch.equal(whole, second)
