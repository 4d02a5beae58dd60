"""What the outside judge runs: a folder that keeps the promises of a store, and a training that goes on in it."""

import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import NotFoundError, PreconditionError
from orchestrator.runs.checkpoint import MARKER, list_checkpoints, newest_valid
from tests.outside_judge import RUN, FolderStore, train


def test_an_object_is_whole_or_absent_and_conditions_are_kept(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    etag = store.write("a/b", b"one", only_if_absent=True)
    with pytest.raises(PreconditionError, match="a/b must not exist, got an object"):
        store.write("a/b", b"two", only_if_absent=True)
    with pytest.raises(PreconditionError, match="a/b must be unchanged, got another etag"):
        store.write("a/b", b"two", only_if_etag="another")
    assert store.write("a/b", b"three", only_if_etag=etag) != etag
    assert (store.read("a/b"), store.read_range("a/b", start=1, length=3)) == (b"three", b"hre")
    assert ([info.key for info in store.list("a")], store.folders(), store.folders("a")) == (["a/b"], ["a"], [])
    store.delete(["a/b", "a/b"])
    with pytest.raises(NotFoundError, match="a/b must exist, got nothing"):
        store.read("a/b")


def test_a_kill_before_an_object_has_its_name_leaves_no_object(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    armed = [True]

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        if armed[0] and event == "os.rename" and str(arguments[0]).startswith(str(tmp_path)):
            raise Killed

    sys.addaudithook(kill)
    store = FolderStore(tmp_path)
    with pytest.raises(Killed):
        store.write("a/b", b"one")
    armed[0] = False  # a hook cannot be taken away
    assert not store.exists("a/b") and store.list() == []


def test_the_judged_training_goes_on_to_the_same_result(tmp_path: Path) -> None:
    assert train(tmp_path / "whole", epochs=1) == 0
    result = (tmp_path / "whole" / "result.safetensors").read_bytes()
    store: Any = FolderStore(tmp_path / "whole" / "store")
    assert [found.step for found in list_checkpoints(store, run=RUN)] == [90, 60]

    newest = next(iter(list_checkpoints(store, run=RUN)))
    store.delete([newest.prefix + MARKER])
    (tmp_path / "whole" / "result.safetensors").unlink()
    assert train(tmp_path / "whole", epochs=1) == 60
    assert (tmp_path / "whole" / "result.safetensors").read_bytes() == result
    restored = newest_valid(store, run=RUN)
    assert restored is not None and restored.state.progress.update == 90
    assert train(tmp_path / "whole", epochs=1) == 90
