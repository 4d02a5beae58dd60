"""Runs that are trained together get the numbers that each has alone."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cluster.errors import RunFailedError
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.data.sources.options import SourceOptions
from orchestrator.driving.plan import plan_run
from orchestrator.runs.checkpoint import load_checkpoint
from orchestrator.runs.record import RunRecord
from orchestrator.training.epoch import apply_update, evaluate
from orchestrator.training.fit import fit
from orchestrator.training.together import apply_update as apply_update_together
from orchestrator.training.together import build_group, can_train_together, fit_together, most_at_once
from orchestrator.training.trainer import Trainer, World, build_trainer
from tests.fake_store import MemoryStore

TOLERANCE = 1e-5
TIMED = ("seconds", "samples_per_s", "waiting_share")
TECHNIQUES = {
    "activation": ("tanh", "relu"),
    "initialization": ("constant", "normalized"),
    "regularization": ("penalty", "layers"),
    "gradient": ("stochastic", "batch"),
}
CHOICES = [
    (dict(zip(TECHNIQUES, chosen, strict=True)), optimizer)
    for *chosen, optimizer in itertools.product(*TECHNIQUES.values(), ("sgd", "adam"))
    if (optimizer, chosen[2]) != ("adam", "layers")  # not trained together: see `can_train_together`
]
MODEL = {"type": "mlp", "hidden": [16, 12], "dropout": 0.2, "initial_std": 0.1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found, folder = MemoryStore(), tmp_path_factory.mktemp("sources")
    # Of two equal samples, batch normalization makes rounding, and ReLU a decision of it: none meet in this order.
    push(found, "sklearn:digits", options=SourceOptions(order="keep"))  # type: ignore[arg-type]
    push(found, "statsmodels:elnino")  # type: ignore[arg-type]
    targets: dict[str, Callable[[int], Any]] = {
        "classes": lambda i: "yes" if i % 7 > 3 else "no",
        "numbers": lambda i: i % 7 - 1.5,
    }
    for name, target in targets.items():
        rows = [f"{i % 7},{'abc'[i % 3]},{target(i)}" for i in range(900)]
        (folder / f"{name}.csv").write_text("\n".join(["number,letter,label", *rows]))
        push(found, str(folder / f"{name}.csv"), name=name)  # type: ignore[arg-type]
    return found


def records_of(store: Any, *, seeds: int = 3, techniques: Any = None, scaling: Any = None, **train: Any) -> list[Any]:
    """Runs of digits with seeds 0, 1, …; their last batch is smaller."""
    data = train.pop("data", {"name": "digits"})
    settings = {"epochs": 2, "batch_size": 240, "learning_rate": 0.05} | train
    records = []
    for seed in range(seeds):
        experiment = Experiment.model_validate(
            {
                "data": data,
                "model": MODEL,
                "techniques": {"processor": "cpu"} | (techniques or {}),
                "train": settings | {"seed": seed},
                "scaling": {"logical_workers": 4} | (scaling or {}),
            }
        )
        records.append(plan_run(experiment, open_dataset(store, experiment.data.name), run=f"run-{seed}"))
    return records


def trained_alone(records: list[RunRecord], store: Any) -> list[Trainer]:
    return [fit(record, store=copy_of(store), world=World(), checkpoints="last") for record in records]


def trained_together(records: list[RunRecord], store: Any) -> list[Trainer]:
    assert can_train_together(records[0])
    found = fit_together(records, store=copy_of(store), world=World())
    return [trainer for trainer in found if isinstance(trainer, Trainer)]


def copy_of(store: MemoryStore) -> Any:
    """With the data and no checkpoint of another training."""
    return MemoryStore(objects=dict(store.objects))


def require_same(together: Trainer, alone: Trainer) -> None:
    """Weights, running statistics, optimizer, history with the why panel, and the final checkpoint."""
    require_close(together.network.state_dict(), alone.network.state_dict())
    require_close(numbers(together.history), numbers(alone.history))
    assert [list(epoch) for epoch in together.history] == [list(epoch) for epoch in alone.history]
    assert (together.update, together.position) == (alone.update, alone.position)
    assert together.checkpoint and alone.checkpoint
    ours, theirs = (load_checkpoint(t.store, prefix=t.checkpoint or "") for t in (together, alone))
    require_close(ours.weights, theirs.weights)
    require_close(ours.optimizer, theirs.optimizer)
    assert ours.progress.model_dump(exclude={"history"}) == theirs.progress.model_dump(exclude={"history"})


def require_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        worst = (found[name] - tensor).abs().max().item()
        assert torch.allclose(found[name], tensor, rtol=TOLERANCE, atol=TOLERANCE), f"{name} is {worst} off"


def numbers(history: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Every number of a history that does not measure time, those of the why panel included, by name."""
    found = {}
    for epoch in history:
        named = {name: value for name, value in epoch.items() if name not in (*TIMED, "why")}
        for row in epoch["why"]:
            named |= {f"{row['layer']} {name}": value for name, value in row.items() if name != "layer"}
        for name, value in named.items():
            found[f"epoch {epoch['epoch']}: {name}"] = torch.tensor(float("nan") if value is None else float(value))
    return {name: value.nan_to_num(-1.0) for name, value in found.items()}


@pytest.mark.parametrize(("techniques", "optimizer"), CHOICES)
def test_each_run_ends_with_the_numbers_that_it_has_alone(
    store: Any, techniques: dict[str, str], optimizer: str
) -> None:
    rate = 0.05 if optimizer == "sgd" else 0.003
    records = records_of(store, techniques=techniques, optimizer=optimizer, learning_rate=rate)
    together, alone = trained_together(records, store), trained_alone(records, store)
    assert len(together) == len(alone)
    for ours, theirs in zip(together, alone, strict=True):
        require_same(ours, theirs)
        assert evaluate(ours, "test") == pytest.approx(evaluate(theirs, "test"), abs=TOLERANCE)


@pytest.mark.parametrize(
    "train",
    [
        {"l1": 0.001, "l2": 0.01},
        {"clip_norm": 0.3, "weight_decay": 0.1, "l1": 0.001},
        {"momentum": 0.9, "schedule": "cosine", "warmup": 0.5, "clip_norm": 1e9},
        {"optimizer": "adam", "schedule": "one_cycle", "warmup": 0.3, "weight_decay": 0.1, "l2": 0.01},
    ],
)
def test_networks_in_rows_are_changed_as_each_is_alone(store: Any, train: dict[str, Any]) -> None:
    records = records_of(store, techniques={"regularization": "penalty"}, **train)
    alone, together = ([build_trainer(record, store=store, world=World()) for record in records] for _ in range(2))
    group, generator = build_group(together), torch.Generator().manual_seed(0)
    for _ in range(3):
        gradients_RP = torch.randn(group.network.gradients_RP.shape, generator=generator)
        group.network.gradients_RP.copy_(gradients_RP)
        apply_update_together(group)
        for trainer, gradient_P, weights_P in zip(alone, gradients_RP, group.network.weights_RP, strict=True):
            trainer.parts.gradient_P.copy_(gradient_P)
            apply_update(trainer)
            found_P = torch.nn.utils.parameters_to_vector(trainer.network.parameters())
            torch.testing.assert_close(weights_P, found_P, rtol=1e-6, atol=1e-7)
    assert [t.update for t in together] == [t.update for t in alone] == [3, 3, 3]


@pytest.mark.parametrize(
    "train",
    [
        {"clip_norm": 0.3, "weight_decay": 0.01, "label_smoothing": 0.1},
        {"data": {"name": "digits", "augment": ["crop"]}, "momentum": 0.0, "schedule": "cosine"},
        {"data": {"name": "numbers"}, "batch_size": 128, "learning_rate": 0.01},
        {"data": {"name": "elnino", "lookback": 12, "horizon": 3}, "batch_size": 64, "drop_last": True},
        {"data": {"name": "classes"}, "batch_size": 128, "learning_rate": 0.01},
    ],
    ids=["clipped, decayed, smoothed", "augmented", "numbers", "forecast", "mixed features"],
)
@pytest.mark.parametrize("regularization", ["penalty", "layers"])
def test_settings_and_kinds_of_data_make_no_difference(store: Any, train: dict[str, Any], regularization: str) -> None:
    records = records_of(store, techniques={"regularization": regularization}, **train)
    for ours, theirs in zip(trained_together(records, store), trained_alone(records, store), strict=True):
        require_same(ours, theirs)


def test_runs_of_different_learning_rates_are_trained_together(store: Any) -> None:
    records = records_of(store)
    for place, rate in enumerate((0.1, 0.01, 0.1)):
        train = records[place].experiment.train.model_copy(update={"learning_rate": rate})
        experiment = records[place].experiment.model_copy(update={"train": train})
        records[place] = records[place].model_copy(update={"experiment": experiment})
    for ours, theirs in zip(trained_together(records, store), trained_alone(records, store), strict=True):
        require_same(ours, theirs)


@pytest.mark.parametrize("left_over", [1, 5])
def test_a_last_batch_of_pieces_with_one_sample_or_none_trains_as_alone(store: Any, left_over: int) -> None:
    dataset = open_dataset(store, "digits")
    size = dataset.split("train").rows - left_over
    size -= size % 4
    settings = {"batch_size": size, "learning_rate": 0.01, "epochs": 1}
    # with the next seed a unit is nearly the same for both samples of a piece, whose normalization enlarges rounding
    records = records_of(store, seeds=2, techniques={"regularization": "layers"}, **settings)
    for ours, theirs in zip(trained_together(records, store), trained_alone(records, store), strict=True):
        require_same(ours, theirs)


def test_a_run_whose_loss_is_no_number_fails_alone(store: Any) -> None:
    records = records_of(store, techniques={"activation": "relu", "regularization": "penalty"})
    train = records[1].experiment.train.model_copy(update={"learning_rate": 1e30})
    experiment = records[1].experiment.model_copy(update={"train": train})
    records[1] = records[1].model_copy(update={"experiment": experiment})
    found = fit_together(records, store=copy_of(store), world=World())
    with pytest.raises(RunFailedError, match="train_loss must be a finite number") as alone:
        trained_alone(records[1:2], store)
    assert isinstance(found[1], RunFailedError) and str(found[1]) == str(alone.value)
    for place in (0, 2):
        ours = found[place]
        assert isinstance(ours, Trainer)
        require_same(ours, trained_alone([records[place]], store)[0])


def test_what_cannot_be_trained_together_exactly_is_not(store: Any) -> None:
    [record] = records_of(store, seeds=1)
    assert can_train_together(record)
    with_layers = {"techniques": {"regularization": "layers"}}
    for changes in ({"precision": "bf16"}, {"scaling": {"workers": 2}}, {"optimizer": "adam"} | with_layers):
        assert not can_train_together(records_of(store, seeds=1, **changes)[0])
    on_gpu = record.techniques.model_copy(update={"processor": "gpu"})
    assert not can_train_together(record.model_copy(update={"techniques": on_gpu}))
    cnn = Experiment.model_validate(record.experiment.model_dump(mode="json") | {"model": {"type": "cnn"}})
    assert not can_train_together(record.model_copy(update={"experiment": cnn}))


def test_replicates_that_do_not_fit_into_memory_are_trained_in_turns(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = records_of(store)
    dataset = open_dataset(store, "digits")
    assert most_at_once(records[0], dataset) > 1000
    split_mb = sum(shard.bytes for shard in dataset.split("train").shards) / 2**20
    monkeypatch.setattr("orchestrator.training.together.WINDOWS_MB", 2.5 * split_mb)
    assert most_at_once(records[0], dataset) == 2
    found = trained_together(records, store)
    assert [trainer.record.run for trainer in found] == ["run-0", "run-1", "run-2"]
    require_same(found[2], trained_alone(records[2:], store)[0])
