"""A training run whose store fails in every way that S3 does: the same bits as without, or an error that says why."""

import hashlib
import logging
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import StoreSettings
from cluster.errors import IntegrityError, StoreAccessError, StoreUnavailableError
from cluster.machine.state import StoreState
from cluster.s3.retries import RetryPolicy
from cluster.s3.store import Store
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving.plan import plan_run
from orchestrator.runs.checkpoint import Restored, newest_valid
from orchestrator.runs.log import RunLog
from orchestrator.runs.record import RunRecord, read_history
from orchestrator.training.fit import fit
from orchestrator.training.trainer import Trainer, World
from tests.fault_proxy import Fault, FaultProxy, Rule

pytestmark = pytest.mark.store

POLICY = RetryPolicy(
    total_s=20.0,
    connect_timeout_s=2.0,
    read_timeout_s=1.0,
    min_bytes_per_s=20_000.0,
    expired_s=20.0,
    first_pause_s=0.002,
    longest_pause_s=0.05,
    calm_s=60.0,  # longer than any test: a burst is not over by chance
)
SHARDS = r"train-.*parquet"
CHECKPOINT = r"checkpoints/.*weights"
EPOCHS = 3
BUSY = Fault(status=503, code="SlowDown")
EXPIRED = Fault(status=400, code="ExpiredToken")
TIMED = {"seconds", "samples_per_s", "waiting_share"}


@pytest.fixture(scope="module")
def direct(store_server: StoreState) -> Store:
    """The store without the proxy; it holds a dataset."""
    settings = store_server.settings
    store = Store(settings.model_copy(update={"url": f"{settings.url}/store-faults"}))
    push(store, "sklearn:digits")
    return store


@pytest.fixture(scope="module")
def expected(direct: Store) -> str:
    """The result of a run without faults."""
    return digest(train(direct, record_of(direct, "without-faults")))


@pytest.fixture
def proxy(store_server: StoreState) -> Iterator[FaultProxy]:
    with FaultProxy(str(store_server.settings.endpoint_url)) as proxy:
        yield proxy


@pytest.fixture
def run(direct: Store, request: pytest.FixtureRequest) -> RunRecord:
    """A run of the test's own."""
    return record_of(direct, hashlib.sha256(request.node.name.encode()).hexdigest()[:12])


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the store has logged."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("cluster.s3.")]


def record_of(store: Store, run: str) -> RunRecord:
    settings = {
        "data": {"name": "digits", "cache_mb": 0},
        "model": {"type": "cnn", "channels": [4]},
        "train": {"epochs": EPOCHS, "batch_size": 240, "learning_rate": 0.1},
        "scaling": {"workers": 1, "logical_workers": 2},
    }
    return plan_run(Experiment.model_validate(settings), open_dataset(store, "digits"), run=run)


def through(proxy: FaultProxy, direct: Store, *, policy: RetryPolicy = POLICY, **settings: str | None) -> Store:
    """The same store, seen through the proxy."""
    return Store(direct.settings.model_copy(update={"endpoint_url": proxy.url, **settings}), policy=policy)


def train(store: Store, record: RunRecord) -> Trainer:
    with RunLog(store, record.run, tensorboard=False) as log:
        return fit(record, store=store, world=World(), log=log)


def digest(trainer: Trainer) -> str:
    """Of the weights and the metrics of every epoch."""
    weights = [t.detach().contiguous().numpy().tobytes() for t in trainer.network.state_dict().values()]
    metrics = [
        {name: float(value) for name, value in e.items() if name not in {*TIMED, "why"}} for e in trainer.history
    ]
    return hashlib.sha256(b"".join([*weights, repr(metrics).encode()])).hexdigest()


def last_checkpoint(direct: Store, record: RunRecord) -> Restored:
    """The newest finished one, which must be valid: a damaged one may not have been passed over."""
    found = newest_valid(direct, run=record.run)
    assert found is not None
    assert all("COMPLETE must exist" in reason for reason in found.passed_over)
    return found


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something beside the training, and see that it was done."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join()
    assert errors == []


# ---- P15a: throttling


def test_a_third_of_all_calls_throttled_changes_nothing_and_logs_one_line(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord, lines: Callable[[], list[str]]
) -> None:
    proxy.set(Rule(BUSY, probability=0.3))
    assert digest(train(through(proxy, direct), run)) == expected
    assert proxy.hits(BUSY) > 5
    (line,) = lines()
    assert line.endswith("SlowDown (HTTP 503); trying again")
    assert last_checkpoint(direct, run).state.progress.epoch == EPOCHS


def test_all_calls_throttled_for_a_while_logs_the_begin_and_the_end(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord, lines: Callable[[], list[str]]
) -> None:
    def burst() -> None:
        proxy.wait_for(SHARDS)
        proxy.set(Rule(BUSY))
        proxy.wait_for("", times=len(proxy.log) + 30)
        proxy.set()

    store = through(proxy, direct, policy=replace(POLICY, calm_s=0.2))
    with meanwhile(burst):
        assert digest(train(store, run)) == expected
    while len(lines()) < 2:
        store.exists("anything")
    begun, over = lines()
    assert begun.endswith("SlowDown (HTTP 503); trying again")
    assert "answers again after" in over
    assert int(over.split("after ")[1].split()[0]) == proxy.hits(BUSY)


# ---- P15b: an outage while a checkpoint is written


def test_an_outage_during_a_checkpoint_is_waited_for(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord, lines: Callable[[], list[str]]
) -> None:
    def outage() -> None:
        proxy.wait_for(CHECKPOINT, method="PUT")
        proxy.refuse()
        while not lines():
            time.sleep(0.01)
        proxy.accept()

    with meanwhile(outage):
        assert digest(train(through(proxy, direct), run)) == expected
    assert len(lines()) == 1
    assert last_checkpoint(direct, run).state.progress.epoch == EPOCHS


def test_an_outage_beyond_the_budget_costs_checkpoints_but_only_at_the_last_one_the_run(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord
) -> None:
    proxy.set(Rule(BUSY, key=CHECKPOINT, first=2))
    with pytest.raises(StoreUnavailableError, match=r"must answer to write .*weights\.safetensors, got SlowDown"):
        train(through(proxy, direct, policy=replace(POLICY, total_s=0.5)), run)
    assert len(read_history(direct, run.run)) == EPOCHS
    assert last_checkpoint(direct, run).state.progress.epoch == 1
    proxy.set()
    assert digest(train(through(proxy, direct), run)) == expected


# ---- P15c: broken and slow answers


@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True),
        Fault(reset_at=0),
        Fault(reset_at=5000),
        Fault(truncate_at=5000),
        Fault(shorten_to=5000),
        Fault(stall=True),
        Fault(bytes_per_s=1000),
        Fault(status=200, code="InternalError"),
        Fault(status=206, code="InternalError"),
        Fault(status=502, body=b"<html>Bad Gateway</html>"),
        Fault(reset_at=5000, headers=(("ETag", '"of-another"'),)),
    ],
    ids=str,
)
def test_an_answer_that_breaks_or_drips_is_fetched_again(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord, lines: Callable[[], list[str]], fault: Fault
) -> None:
    proxy.set(Rule(fault, method="GET", key=SHARDS, first=2, times=2))
    assert digest(train(through(proxy, direct), run)) == expected
    assert proxy.hits(fault) == 2
    assert len(lines()) == 1


def test_a_body_that_drips_for_ever_ends_with_the_budget(proxy: FaultProxy, direct: Store, run: RunRecord) -> None:
    proxy.set(Rule(Fault(bytes_per_s=1000), method="GET", key=SHARDS))
    store = through(proxy, direct, policy=replace(POLICY, total_s=1.0, read_timeout_s=0.3))
    with pytest.raises(StoreUnavailableError, match="got a body of less than 20000 bytes/s"):
        train(store, run)


def test_a_slow_body_above_the_least_rate_is_read_to_its_end(
    proxy: FaultProxy, direct: Store, lines: Callable[[], list[str]]
) -> None:
    data = bytes(100_000)
    direct.write("slow", data)
    proxy.set(Rule(Fault(bytes_per_s=60_000), key="slow"))
    store = through(proxy, direct, policy=replace(POLICY, total_s=0.3, read_timeout_s=0.3))
    assert store.read("slow") == data  # it takes longer than both limits
    assert (len(proxy.log), lines()) == (1, [])


def test_an_upload_that_is_taken_too_slowly_ends_with_the_budget(proxy: FaultProxy, direct: Store) -> None:
    proxy.set(Rule(Fault(receive_bytes_per_s=200_000.0), method="PUT"))
    policy = replace(POLICY, total_s=0.5, read_timeout_s=0.5, connect_timeout_s=60.0, min_bytes_per_s=1e7)
    with pytest.raises(StoreUnavailableError, match="must answer to write slow, got"):
        through(proxy, direct, policy=policy).write("slow", bytes(16 * 2**20))


def test_a_listing_cut_short_or_replaced_by_a_page_of_a_proxy_is_asked_for_again(
    proxy: FaultProxy, direct: Store
) -> None:
    for fault in (Fault(truncate_at=150), Fault(shorten_to=0), Fault(status=200, body=b"<html>Log in</html>")):
        proxy.set(Rule(fault, key="list-type", times=1))
        assert through(proxy, direct).folders() == direct.folders()
        assert proxy.hits(fault) == 1


# ---- P15d, P16: wrong bytes


def test_a_row_group_damaged_on_its_way_is_fetched_once_more(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord, lines: Callable[[], list[str]]
) -> None:
    fault = Fault(flip_at=1234)
    proxy.set(Rule(fault, method="GET", key=SHARDS, first=2, times=1))
    assert digest(train(through(proxy, direct), run)) == expected
    assert proxy.hits(fault) == 1
    assert lines() == []  # the store cannot know; the reader does


def test_a_row_group_damaged_every_time_is_named_and_never_trained_on(
    proxy: FaultProxy, direct: Store, run: RunRecord
) -> None:
    proxy.set(Rule(Fault(flip_at=1234), method="GET", key=SHARDS))
    with pytest.raises(IntegrityError, match=r"row group \d+ of shard .*/train-00000-of-00001\.parquet must have SHA"):
        train(through(proxy, direct), run)
    assert newest_valid(direct, run=run.run) is None


def test_a_shard_damaged_in_the_store_is_named(store: Store) -> None:
    push(store, "sklearn:digits")
    record = record_of(store, "damaged")
    (shard,) = (info.key for info in store.list("datasets/") if "/train-" in info.key)
    data = bytearray(store.read(shard))
    data[len(data) // 2] ^= 1
    store.write(shard, bytes(data))
    with pytest.raises(IntegrityError, match=rf"row group 0 of shard {shard} must have SHA-256"):
        train(store, record)


def test_bytes_damaged_on_their_way_into_the_store_are_refused_and_sent_again(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord
) -> None:
    fault = Fault(flip_request=True)
    proxy.set(Rule(fault, method="PUT", key=CHECKPOINT, times=1))
    assert digest(train(through(proxy, direct), run)) == expected
    assert proxy.hits(fault) == 1
    assert last_checkpoint(direct, run).state.progress.epoch == EPOCHS


# ---- P15e: writes whose answer lies or is lost


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=200, code="InternalError"),
        Fault(status=200),
        Fault(status=500, code="InternalError", apply=True),
        Fault(drop=True, apply=True),
    ],
    ids=str,
)
def test_a_checkpoint_survives_answers_that_lie_or_get_lost(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord, fault: Fault
) -> None:
    proxy.set(Rule(fault, method="PUT", key="checkpoints/", first=2, times=3))
    assert digest(train(through(proxy, direct), run)) == expected
    assert proxy.hits(fault) == 3
    assert last_checkpoint(direct, run).state.progress.epoch == EPOCHS


# ---- P15f: credentials that expire


def credentials(direct: Store, path: Path, *, region: str) -> None:
    """Write the server's keys with a region, which tells old ones from new: the server has one pair only."""
    keys = Path(str(direct.settings.credentials_file)).read_text()
    path.write_text(f"{keys}region = {region}\n")


OUTDATED = ("Authorization", "/us-east-1/")


def test_new_credentials_that_appear_in_the_file_are_used(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord, tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    def rotate() -> None:
        proxy.wait_for(CHECKPOINT, method="PUT")
        proxy.set(Rule(EXPIRED, header=OUTDATED))
        proxy.wait_for("", times=len(proxy.log) + 5)
        file.write_text("")  # as whatever writes a file anew leaves it for an instant
        time.sleep(0.2)
        credentials(direct, file, region="us-west-2")

    file = tmp_path / "credentials"
    credentials(direct, file, region="us-east-1")
    store = through(proxy, direct, credentials_file=str(file), region=None)
    with meanwhile(rotate):
        assert digest(train(store, run)) == expected
    assert proxy.hits(EXPIRED) >= 4
    assert len(lines()) == 1


def test_without_new_credentials_the_run_says_that_they_expired_and_keeps_its_checkpoint(
    proxy: FaultProxy, direct: Store, expected: str, run: RunRecord
) -> None:
    proxy.set(Rule(EXPIRED, key=CHECKPOINT, first=2))
    store = through(proxy, direct, policy=replace(POLICY, expired_s=0.3))
    with pytest.raises(StoreAccessError, match=r"got ExpiredToken\. Credentials expired: renew them"):
        train(store, run)
    assert last_checkpoint(direct, run).state.progress.epoch == 1
    proxy.set()
    assert digest(train(through(proxy, direct), run)) == expected


def test_a_source_of_credentials_that_cannot_renew_them_is_an_expiry(proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[rotating]\ncredential_process = false\n")
    settings = StoreSettings(
        url="s3://orchestrator",
        endpoint_url=proxy.url,
        profile="rotating",
        credentials_file=str(tmp_path / "credentials"),
    )
    with pytest.raises(StoreAccessError, match=r"got CredentialRetrievalError\. Credentials expired: renew"):
        Store(settings, policy=replace(POLICY, expired_s=0.2)).read("x")


# ---- P15g: what the check before a run finds


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(Fault(status=403, code="AccessDenied")), "Grant read, write, list and delete"),
        (Rule(Fault(status=403)), "Grant read, write, list and delete"),
        (Rule(Fault(status=403, code="AccessDenied"), method="PUT"), "could not write"),
        (Rule(Fault(status=403, code="AccessDenied"), method="GET", key="list-type"), "could not look up"),
        (Rule(Fault(status=403, code="AccessDenied"), method="GET", key=r"check-\w*$"), "could not read"),
        (Rule(Fault(status=403, code="AccessDenied"), method="POST"), "could not delete"),
        (Rule(Fault(status=404, code="NoSuchBucket")), "Create the bucket or correct the URL"),
        (Rule(Fault(status=301, code="PermanentRedirect")), "Set AWS_REGION to the bucket's region"),
        (Rule(Fault(status=307)), "Set AWS_REGION to the bucket's region"),
        (Rule(Fault(status=400, code="AuthorizationHeaderMalformed")), "Set AWS_REGION to the bucket's region"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_check_finds_what_is_refused_and_names_the_cure(
    proxy: FaultProxy, direct: Store, rule: Rule, message: str
) -> None:
    proxy.set(rule)
    with pytest.raises(StoreAccessError, match=message):
        through(proxy, direct).check()


@pytest.mark.parametrize("step", ["PUT", "GET", "POST"])
@pytest.mark.parametrize("fault", [Fault(stall=True), BUSY], ids=str)
def test_the_check_ends_within_its_deadline_whatever_step_gets_no_answer(
    proxy: FaultProxy, direct: Store, step: str, fault: Fault
) -> None:
    proxy.set(Rule(fault, method=step))
    with pytest.raises(StoreUnavailableError, match="must answer to"):
        through(proxy, direct).check(deadline_s=1.0)


def test_the_check_finds_a_bucket_that_is_missing(proxy: FaultProxy, direct: Store) -> None:
    with pytest.raises(StoreAccessError, match="Create the bucket or correct the URL"):
        through(proxy, direct, url="s3://missing-bucket").check()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine that nobody has signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=here -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


def test_a_certificate_is_trusted_only_when_its_authority_is(
    store_server: StoreState, direct: Store, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    with FaultProxy(str(store_server.settings.endpoint_url), tls=context) as proxy:
        with pytest.raises(StoreAccessError, match=r"got .*self-signed certificate.* Set AWS_CA_BUNDLE"):
            through(proxy, direct).check()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
        through(proxy, direct).check()


def test_a_server_without_tls_at_an_https_address_is_named(proxy: FaultProxy, direct: Store) -> None:
    plain = proxy.url.replace("http:", "https:")
    with pytest.raises(StoreAccessError, match=f"at {plain} must have a certificate .* wrong version number"):
        through(proxy, direct, endpoint_url=plain).check()
