"""Endpoints are remembered with the head that serves them, and named once that is another one."""

from pathlib import Path

import pytest

from cluster.config import StoreSettings
from cluster.errors import ClusterError, ConfigError
from cluster.machine.state import LocalState, ProcessRecord, RayState, StoreState
from orchestrator.commands.local import _redeploy
from serving.deployed import Deployed, forget, forget_deleted, gone_endpoints, remember, store_of
from tests.ports import free_port


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    return tmp_path


def head(pid: int) -> RayState:
    process = ProcessRecord(pid=pid, created=1.0)
    return RayState(process=process, address="127.0.0.1:1", dashboard_url="http://h:2", token_file="", temp_dir="")


def local_store(home: Path, port: int) -> StoreState:
    settings = StoreSettings(
        url="s3://orchestrator",
        endpoint_url=f"http://127.0.0.1:{port}",
        profile="orchestrator",
        credentials_file=str(home / "credentials"),
    )
    return StoreState(process=ProcessRecord(pid=1, created=1.0), settings=settings)


def deployed(name: str, *, pid: int = 1, store: StoreSettings | None = None) -> Deployed:
    return Deployed(
        name=name,
        version="v1",
        replicas=2,
        cpus=0.5,
        url="http://127.0.0.1:8000",
        store=store or StoreSettings(url="s3://elsewhere"),
        head=head(pid).process,
    )


def test_an_endpoint_is_gone_under_another_head_and_served_under_its_own(own_home: Path) -> None:
    remember(deployed("digits"))
    remember(deployed("china"))
    remember(deployed("served", pid=2))
    assert gone_endpoints(head(2)) == [deployed("china"), deployed("digits")]
    assert gone_endpoints(head(1)) == [deployed("served", pid=2)]
    assert gone_endpoints(None) == []
    assert {path.stat().st_mode & 0o777 for path in (own_home / "deployed").iterdir()} == {0o600}
    assert (own_home / "deployed").stat().st_mode & 0o777 == 0o700


def test_a_later_deployment_replaces_the_record_and_a_forgotten_one_is_not_brought_back() -> None:
    remember(deployed("digits"))
    remember(deployed("digits", pid=2))
    assert gone_endpoints(head(2)) == []
    assert forget("digits")
    assert not forget("digits")
    assert gone_endpoints(head(1)) == []


def test_the_local_store_is_found_at_the_address_that_it_has_now(own_home: Path) -> None:
    before, now = local_store(own_home, 20001), local_store(own_home, 20002)
    assert store_of(deployed("digits", store=before.settings), now).settings == now.settings
    assert store_of(deployed("digits"), now).settings == StoreSettings(url="s3://elsewhere")


def test_endpoints_whose_models_were_deleted_with_the_local_store_are_forgotten(own_home: Path) -> None:
    remember(deployed("ours", store=local_store(own_home, 20001).settings))
    remember(deployed("theirs"))
    forget_deleted()
    assert [endpoint.name for endpoint in gone_endpoints(head(2))] == ["theirs"]


def test_a_damaged_record_is_named_with_its_cure(own_home: Path) -> None:
    remember(deployed("digits"))
    path = own_home / "deployed" / "digits.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=rf"{path} must be a record that `orchestrator deploy` wrote, got .* Delete"):
        gone_endpoints(head(2))


def test_each_endpoint_that_stays_gone_is_named_and_the_first_error_ends_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nobody = head(2).model_copy(update={"address": f"127.0.0.1:{free_port()}"})
    with pytest.raises(ClusterError, match=rf"{nobody.address} \(from --address\) must answer within 10 s"):
        _redeploy([deployed("china"), deployed("digits")], LocalState(ray=nobody))
    told = capsys.readouterr().err
    assert [line.split(":")[0] for line in told.splitlines() if "still gone" in line] == [
        "china v1 is still gone",
        "digits v1 is still gone",
    ]
