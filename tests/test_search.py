"""A search finds good settings, stops and copies as its method says, and ends no trial twice."""

import json
import math
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.errors import ConfigError, NotFoundError
from cluster.machine.state import RayState
from cluster.s3.store import Store
from cluster.s3.write_once import unsealed
from cluster.session import ray_session
from orchestrator.commands.report import report
from orchestrator.config import Experiment
from orchestrator.configfile import validate
from orchestrator.data.push import push
from orchestrator.document import parse_document
from orchestrator.runs.checkpoint import list_checkpoints, load_checkpoint
from orchestrator.runs.record import read_history, read_run
from orchestrator.search import resume_search, search
from orchestrator.searching.record import (
    SearchProgress,
    TrialRecord,
    best_of,
    is_search,
    ranked,
    read_result,
    read_search,
    read_trials,
    trials_folder,
    write_trial,
)
from orchestrator.searching.space import MOST_PROBES, Known, Values, probes, suggest, with_values
from orchestrator.sweeping.record import read_sweep
from orchestrator.train import resume
from serving import registry

RATES = {"low": 0.001, "high": 1.0, "scale": "log"}


def experiment(
    space: dict[str, Any], *, epochs: int = 2, data: dict[str, Any] | None = None, **settings: Any
) -> Experiment:
    return validate(
        parse_document(
            json.dumps(
                {
                    "data": data or {"name": "digits"},
                    "model": {"type": "mlp", "hidden": [8]},
                    "train": {"epochs": epochs, "batch_size": 128, "learning_rate": 0.05},
                    "search": {"method": "random", "trials": 4, "space": space, **settings},
                }
            ),
            source="my.yaml",
        )
    )


# ------------------------------------------------------------------------------------------------------------ space


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({"low": 1, "high": 0.1}, "must have low below high, got 1 and 0.1"),
        ({"low": 1, "high": 1}, "must have low below high, got 1 and 1"),
        ({"low": 0, "high": 0.1, "scale": "log"}, "must have low above 0 on the scale log, got 0"),
        ({"low": 0.1, "high": 1, "scale": "lgo"}, "must have the scale linear or log, got 'lgo'"),
        ({"low": 0.1, "high": 1, "scale": "log", "step": 0.1}, "must have no step on the scale log, got 0.1"),
        ({"low": 0.1, "high": 1, "step": 0.4}, r"must reach high \(1\) from low \(0.1\) in whole steps, got step 0.4"),
        ({"low": 0.1}, "must hold low and high, and may hold scale and step, got low"),
        ({"low": 0.1, "hihg": 1}, "must hold low and high, and may hold scale and step, got low, hihg"),
        ({"low": "a", "high": 1}, "must be a range of numbers, got 'a'"),
        ({"low": True, "high": 2}, "must be a range of numbers, got True"),
        ([], "must hold at least one value, got an empty list"),
        (0.1, "must be a list of values, or a range such as {low: 0, high: 0.9}, got 0.1"),
    ],
)
def test_a_wrong_domain_is_refused_with_its_key(domain: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"my.yaml:1: search.space.train.learning_rate {message}"):
        experiment({"train.learning_rate": domain})


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ({"train.learning_rat": [0.1]}, {}, "search.space.train.learning_rat must name a setting.*Did you mean train"),
        ({"train.seed": [0, 1]}, {}, "search.space.train.seed must be the same for all trials"),
        ({"train.epochs": [1, 9]}, {}, "search.space.train.epochs must be the same for all trials"),
        ({"scaling.workers": [1, 2]}, {}, "search.space.scaling.workers must be the same for all trials"),
        ({"train.momentum": {"low": 0, "high": 1}}, {}, r"search.space \(train.momentum=1.0\): train.momentum must"),
        ({"techniques.activation": ["rleu"]}, {}, r"search.space \(.*\): techniques.activation.*Did you mean relu"),
        ({"train.batch_size": {"low": 32, "high": 64}}, {}, r"train.batch_size=33\).*multiple of the logical workers"),
        ({"train.batch_size": {"low": 0.5, "high": 64}}, {}, "train.batch_size must be a range of whole numbers"),
        ({"model.hidden": [[8], [0]]}, {}, r"search.space \(model.hidden=\[0\]\): model.hidden.0 must"),
        ({"train.batch_size": [32, 64]}, {"method": "pbt"}, "train.batch_size must be a number that may change during"),
        ({"train.momentum": ["a"]}, {"method": "pbt"}, "train.momentum must be a number that may change during"),
        ({"train.l2": {"low": 0, "high": 1, "step": 0.5}}, {"method": "pbt"}, "train.l2 must have no step for search"),
    ],
)
def test_a_wrong_space_is_refused_before_anything_starts(
    space: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        probes(experiment(space, **settings))


def test_a_search_needs_a_space_and_one_worker() -> None:
    base = experiment({"train.momentum": [0, 0.9]})
    with pytest.raises(ConfigError, match="search must be given, got nothing"):
        probes(base.model_copy(update={"search": None}))
    wide = base.model_copy(update={"scaling": base.scaling.model_copy(update={"workers": 2})})
    with pytest.raises(ConfigError, match=r"scaling\.workers must be 1 for a search, got 2"):
        probes(wide)


def test_a_search_is_read_back_from_its_record() -> None:
    written = experiment({"train.momentum": {"low": 0, "high": 0.9}, "model.hidden": [[4], [8, 4]]})
    assert Experiment.model_validate_json(written.model_dump_json()) == written
    assert Experiment.model_validate_json(written.model_dump_json(exclude_unset=True)) == written


def test_every_end_and_choice_is_tried_beforehand_whatever_their_number() -> None:
    few = probes(experiment({"train.momentum": {"low": 0, "high": 0.9}, "model.hidden": [[4], [8], [16]]}))
    assert {(one.train.momentum, one.model.model_dump()["hidden"]) for one in few} == {
        (momentum, (hidden,)) for momentum in (0.0, 0.9) for hidden in (4, 8, 16)
    }
    names = ("momentum", "l1", "l2", "weight_decay", "label_smoothing", "warmup", "clip_norm")
    many = probes(experiment({f"train.{name}": {"low": 0.1, "high": 0.2} for name in names}))
    assert len(many) <= MOST_PROBES
    assert {one.train.momentum for one in many} == {0.1, 0.2}
    assert {one.train.clip_norm for one in many} == {0.1, 0.2}


def test_a_whole_model_is_chosen_before_its_settings() -> None:
    base = experiment({"model.dropout": [0.3], "model": [{"type": "cnn"}]})
    assert with_values(base, {"model.dropout": 0.3, "model": {"type": "cnn"}}).model.model_dump()["dropout"] == 0.3


def test_suggestions_are_in_the_space_and_of_its_kinds() -> None:
    space = {
        "train.learning_rate": RATES,
        "train.batch_size": {"low": 32, "high": 256, "step": 32},
        "model.hidden": [[8], [16, 8]],
        "techniques.activation": ["tanh", "relu"],
    }
    settings = experiment(space, method="tpe").search
    assert settings is not None
    known: list[Known] = []
    for number in range(30):
        values = suggest(settings, number=number, known=known, higher_is_better=True)
        assert 0.001 <= values["train.learning_rate"] <= 1
        assert type(values["train.batch_size"]) is int
        assert values["train.batch_size"] % 32 == 0
        assert values["model.hidden"] in ([8], [16, 8])
        assert values["techniques.activation"] in ("tanh", "relu")
        known.append(Known(values, None if number % 3 == 0 else 1 / number))
    assert len({known.values["train.learning_rate"] for known in known}) == 30


def better_half(method: str, seed: int) -> int:
    """Of 30 trials of one number in 0..1 whose best is 0.2, how many of the last 20 are among the better half."""
    space = {"train.momentum": {"low": 0, "high": 0.99}}
    settings = experiment(space, method=method, seed=seed, trials=30).search
    assert settings is not None
    known: list[Known] = []
    for number in range(30):
        values = suggest(settings, number=number, known=known, higher_is_better=False)
        known.append(Known(values, abs(values["train.momentum"] - 0.2)))
    return sum(value is not None and value < 0.25 for _, value in known[10:])


def test_tpe_tries_more_where_it_is_good_than_chance_does() -> None:
    by_chance = [better_half("random", seed) for seed in range(5)]
    by_tpe = [better_half("tpe", seed) for seed in range(5)]
    assert min(by_tpe) > max(by_chance)


def test_a_trial_that_failed_is_kept_away_from() -> None:
    space = {"train.momentum": {"low": 0, "high": 0.99}}
    settings = experiment(space, method="tpe").search
    assert settings is not None
    known = [Known({"train.momentum": i / 40}, None if i < 20 else 0.5) for i in range(40)]
    tried = [suggest(settings, number=100 + i, known=known, higher_is_better=True) for i in range(20)]
    assert sum(values["train.momentum"] >= 0.5 for values in tried) > 15


def test_a_suggestion_depends_on_the_seed_and_its_number_only() -> None:
    settings = experiment({"train.learning_rate": RATES}, seed=3).search
    other = experiment({"train.learning_rate": RATES}, seed=4).search
    assert settings is not None
    assert other is not None

    def suggested(search: Any, number: int) -> Values:
        return suggest(search, number=number, known=[], higher_is_better=True)

    assert suggested(settings, 5) == suggested(settings, 5)
    assert suggested(settings, 5) not in (suggested(settings, 6), suggested(other, 5))


# ----------------------------------------------------------------------------------------------------------- trials


def trial(number: int, value: float | None, state: Any = "finished") -> TrialRecord:
    return TrialRecord(number=number, run=f"s.trial-{number:03d}", state=state, values={}, value=value)


def test_the_best_trial_was_trained_to_the_end() -> None:
    trials = [trial(0, 0.5), trial(1, 0.9, "stopped"), trial(2, None, "failed"), trial(3, 0.7), trial(4, 0.7)]
    assert [t.number for t in ranked(trials, higher_is_better=True)] == [3, 4, 0, 1, 2]
    assert best_of(trials, higher_is_better=True) == trials[3]
    assert best_of(trials, higher_is_better=False) == trials[0]
    assert best_of([trials[1], trials[2]], higher_is_better=True) is None


def test_a_trial_is_read_back_as_it_was_written_or_not_at_all(store: Store) -> None:
    first = trial(0, 0.5).model_copy(update={"history": [{"epoch": 1, "loss": math.inf}]})
    write_trial(store, "s", first)
    write_trial(store, "s", trial(0, 0.6))
    key = "searches/s/trials/trial-000.json"
    assert unsealed(store.read(key), TrialRecord, kind="trial") == first  # the first result counts
    damaged = store.read(key).replace(b"0.5", b"0.9")
    assert unsealed(damaged, TrialRecord, kind="trial") is None
    store.write(key, damaged)
    assert read_trials(store, "s") == []
    write_trial(store, "s", first)
    assert read_trials(store, "s") == [first]


def test_an_unknown_search_is_named(store: Store) -> None:
    with pytest.raises(NotFoundError, match="search must exist, got 'none'"):
        read_search(store, "none")
    assert not is_search(store, "none")


# ---------------------------------------------------------------------------------------------------------- methods


@pytest.fixture
def digits(store: Store) -> Store:
    push(store, "sklearn:digits")
    return store


@pytest.mark.ray
@pytest.mark.store
def test_a_search_leaves_runs_that_can_be_promoted_and_reports_the_failed_one(
    digits: Store, ray_cluster: RayState
) -> None:
    space = {"train.learning_rate": [0.05, 1e38], "techniques.activation": ["tanh", "relu"]}
    seen: list[SearchProgress] = []
    tried = experiment(space, method="random", trials=5, concurrency=1, seed=1)
    result = search(tried, store=digits, address=ray_cluster.address, name="s", on_progress=seen.append)
    assert [progress.done for progress in seen] == [1, 2, 3, 4, 5]
    trials = read_trials(digits, "s")
    assert tried.search is not None
    assert [t.values for t in trials] == [
        suggest(tried.search, number=number, known=[], higher_is_better=True) for number in range(5)
    ]
    for found in trials:
        diverged = found.values["train.learning_rate"] == 1e38
        assert found.state == ("failed" if diverged else "finished")
        assert ("train_loss must be a finite number" in (found.error or "")) is diverged
        assert found.epochs == (0 if diverged else 2)
    assert {t.state for t in trials} == {"finished", "failed"}

    assert result.best is not None
    run = read_run(digits, result.best.run)
    assert (run.state, run.evaluated_on, run.metrics) == ("finished", "test", result.metrics)
    assert run.experiment.techniques.activation == result.best.values["techniques.activation"]
    assert run.parameters > 0
    assert len(read_history(digits, run.run)) == 2
    assert registry.promote(digits, run=run.run, name="digits").version == "v1"
    assert digits.read_json("searches/s/result.json")["run"] == run.run
    assert read_result(digits, "s").metrics == result.metrics
    assert read_search(digits, "s").state == "finished"
    with pytest.raises(NotFoundError, match="sweep must exist, got 's'"):
        read_sweep(digits, "s")
    with pytest.raises(ConfigError, match="search must have a new name, got 's'"):
        search(tried, store=digits, address=ray_cluster.address, name="s")


@pytest.mark.ray
@pytest.mark.store
def test_asha_stops_trials_early_by_validation_and_a_stopped_one_can_be_trained_to_its_end(
    store: Store, ray_cluster: RayState
) -> None:
    push(store, "statsmodels:elnino")
    series = {"name": "elnino", "lookback": 12, "horizon": 3}
    space = {"train.learning_rate": RATES, "train.momentum": [0.9]}
    tried = experiment(space, data=series, method="asha", trials=6, concurrency=1, epochs=3)
    result = search(tried, store=store, address=ray_cluster.address, name="asha")
    assert (result.record.metric, result.record.judged_on) == ("mse", "validation")
    stopped = [t for t in result.trials if t.state == "stopped"]
    assert stopped
    for found in stopped:
        assert found.epochs == 1
        run = read_run(store, found.run)
        assert (run.state, run.evaluated_on, len(read_history(store, run.run))) == ("unfinished", "validation", 1)
        assert run.metrics["mse"] == found.value

    best = result.best
    assert best is not None
    assert best.value == min(t.value for t in result.trials if t.state == "finished" and t.value is not None)
    assert best.epochs == 3
    run = read_run(store, best.run)
    assert (run.evaluated_on, run.metrics) == ("test", result.metrics)
    assert result.metrics["mse"] != best.value
    others = [t for t in result.trials if t != best]
    assert {read_run(store, t.run).evaluated_on for t in others} == {"validation"}

    ended = resume(stopped[0].run, store=store, address=ray_cluster.address)
    assert len(ended.history) == 3
    assert ended.history[0] == stopped[0].history[0]
    assert read_trials(store, "asha") == sorted(result.trials, key=lambda t: t.number)  # what it said then stays


@pytest.mark.ray
@pytest.mark.store
def test_pbt_copies_the_weights_of_the_best_and_changes_their_settings(digits: Store, ray_cluster: RayState) -> None:
    space = {"train.learning_rate": {"low": 0.0001, "high": 0.3, "scale": "log"}}
    tried = experiment(space, method="pbt", trials=4, epochs=4, concurrency=2)
    result = search(tried, store=digits, address=ray_cluster.address, name="pbt")
    assert {(t.state, t.epochs) for t in result.trials} == {("finished", 4)}
    by_run = {t.run: t for t in result.trials}
    copies = [t for t in result.trials if any(stage.run != t.run for stage in t.stages)]
    assert copies
    for found in copies:
        assert found.stages[-1].run == found.run
        assert found.stages[-1].values == found.values
        assert 0.0001 <= found.values["train.learning_rate"] <= 0.3
        assert read_run(digits, found.run).experiment.train.learning_rate == found.values["train.learning_rate"]
        assert read_history(digits, found.run) == found.history
    assert any(found.stages[-1].values != found.stages[-2].values for found in copies)
    # of one whose source was not overwritten itself later on
    found = next(t for t in copies if by_run[t.stages[-2].run].stages == t.stages[:-1])
    source, epochs = by_run[found.stages[-2].run], found.stages[-1].after_epoch
    assert epochs >= 1
    assert found.history[:epochs] == source.history[:epochs]
    prefix = read_run(digits, found.run).checkpoint
    assert prefix is not None
    assert prefix.startswith(f"runs/{found.run}/")
    assert load_checkpoint(digits, prefix=prefix).progress.history[:epochs] == source.history[:epochs]
    keep = tried.train.keep_checkpoints
    assert all(len(list_checkpoints(digits, run=run)) <= keep for run in by_run)


def kill_trials(cluster: RayState, ended: threading.Event) -> None:
    """SIGKILL every process that trains a trial, until the search has ended."""
    while not ended.wait(0.1):
        for process in psutil.Process(cluster.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ImplicitFunc"):
                    process.kill()


@pytest.mark.ray
@pytest.mark.store
def test_a_trial_whose_process_dies_again_fails_with_its_reason(digits: Store, ray_cluster: RayState) -> None:
    ended = threading.Event()
    killer = threading.Thread(target=kill_trials, args=(ray_cluster, ended))
    killer.start()
    try:
        tried = experiment({"train.momentum": [0.9]}, trials=1, epochs=1000)
        result = search(tried, store=digits, address=ray_cluster.address, name="lost")
    finally:
        ended.set()
        killer.join()
    (found,) = result.trials
    assert (found.state, result.best, result.metrics) == ("failed", None, {})
    assert "a training must not end its process, got 2 deaths in a row" in (found.error or "")
    assert read_run(digits, found.run).state == "failed"


@pytest.mark.ray
@pytest.mark.store
def test_a_trial_that_hangs_is_ended_and_the_next_ones_go_on(
    digits: Store, ray_cluster: RayState, tmp_path: Path
) -> None:
    variables = {"ORCHESTRATOR_FAILPOINTS": f"train.after_step=sleep:600!{tmp_path.name}-{digits.settings.url[-12:]}"}
    tried = experiment({"train.momentum": [0.8, 0.9]}, trials=3, concurrency=1, trial_timeout_minutes=0.1)
    with ray_session(ray_cluster.address, store=digits.settings, environment=variables):
        result = search(tried, store=digits, address=ray_cluster.address, name="hangs")
    assert [trial.state for trial in sorted(result.trials, key=lambda t: t.number)] == [
        "failed",
        "finished",
        "finished",
    ]
    (error,) = [trial.error for trial in result.trials if trial.error]
    assert "a training must end within search.trial_timeout_minutes (0.1)" in error
    assert result.best is not None


# ----------------------------------------------------------------------------------------------------------- resume


@pytest.mark.ray
@pytest.mark.store
@pytest.mark.timeout(300)
def test_a_search_whose_driver_is_killed_goes_on_and_ends_no_trial_twice(
    digits: Store, ray_cluster: RayState, tmp_path: Path
) -> None:
    space = {"train.learning_rate": RATES}
    tried = experiment(space, method="tpe", trials=12, concurrency=1, epochs=1)
    config = tmp_path / "search.yaml"
    config.write_text(tried.model_dump_json(exclude_unset=True))
    options = ["--store", digits.settings.url, "--address", ray_cluster.address]
    command = [sys.executable, "-m", "orchestrator", "sweep", str(config), "--name", "killed", *options]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while len(digits.list(trials_folder("killed"))) < 2:
            assert driver.poll() is None, driver.stderr and driver.stderr.read()
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.communicate()
    before = {info.key: info.etag for info in digits.list(trials_folder("killed"))}
    assert len(before) < 12
    words = [sys.executable, "-m", "orchestrator", "sweep", "--resume", "killed", "--json", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["trials"]) == 12
    assert {i.key: i.etag for i in digits.list(trials_folder("killed")) if i.key in before} == before

    # what is tried is what an unbroken search would have tried
    trials, known = read_trials(digits, "killed"), list[Known]()
    for found in trials:
        assert tried.search is not None
        assert found.values == suggest(tried.search, number=found.number, known=known, higher_is_better=True)
        known.append(Known(found.values, found.value))
    again = resume_search("killed", store=digits, address=ray_cluster.address)
    assert read_trials(digits, "killed") == trials
    assert again.best == best_of(trials, higher_is_better=True)

    shown = subprocess.run(
        [sys.executable, "-m", "orchestrator", "report", "killed", *options[:2]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "12 of 12 trials: 12 finished" in shown.stdout, shown.stderr
    assert re.search(r"best: killed\.trial-\d{3}, on the test split", shown.stdout)
    with pytest.raises(ConfigError, match="report must be of a sweep for --html or --parquet, got the search killed"):
        report("killed", html=tmp_path / "x.html", store=digits.settings.url)


def words_of(groups: dict[str, Any], tmp_path: Path) -> list[str]:
    values = experiment({"train.momentum": [0, 0.9]}).model_dump(mode="json", exclude_unset=True) | groups
    config = tmp_path / "my.yaml"
    config.write_text(json.dumps(values))
    return [sys.executable, "-m", "orchestrator", "sweep", str(config), "--dry-run"]


def test_the_command_asks_for_one_kind_of_sweep_and_lists_a_space(tmp_path: Path) -> None:
    both = {"sweep": {"vary": {"model.dropout": [0, 0.2]}}}
    found = subprocess.run(words_of(both, tmp_path), capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "sweep and search must not both be given" in found.stderr
    found = subprocess.run(words_of({}, tmp_path), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "train.momentum" in found.stdout
    assert "4 trials by random, of 2 epochs each" in found.stdout
