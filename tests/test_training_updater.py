"""The update rule, against PyTorch's optimizers on separate parameters and the penalty that autograd knows."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.config import resolve_techniques
from models.network import Network, build
from models.techniques import penalized_weights
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving.plan import plan_run
from orchestrator.runs.record import RunRecord
from orchestrator.training.updater import Updater, flat_weights
from tests.fake_store import MemoryStore

MODELS = {
    "mlp": {"type": "mlp", "hidden": [9, 5]},
    "cnn": {"type": "cnn", "channels": [3, 4]},
}
SETTINGS: list[dict[str, Any]] = [
    {"momentum": 0.9},
    {"momentum": 0.0, "l1": 0.01, "l2": 0.02},
    {"optimizer": "adam", "weight_decay": 0.1, "l2": 0.02},
    {"momentum": 0.9, "clip_norm": 0.5, "l1": 0.01, "weight_decay": 0.3},
]


@pytest.fixture(scope="module")
def store() -> Any:
    found: Any = MemoryStore()
    push(found, "sklearn:digits")
    return found


def record_of(store: Any, model: str, **train: Any) -> RunRecord:
    settings = {"epochs": 1, "batch_size": 64, "learning_rate": 0.1, "l1": 0.0, "l2": 0.0} | train
    experiment = Experiment.model_validate(
        {
            "data": {"name": "digits"},
            "model": MODELS[model],
            "techniques": {"regularization": "penalty", "processor": "cpu"},
            "train": settings,
        }
    )
    return plan_run(experiment, open_dataset(store, "digits"), run="run")


def network_of(record: RunRecord) -> Network:
    model = record.experiment.model
    techniques = resolve_techniques(record.experiment.techniques, model, gpu_available=False)
    network = build(model, techniques, record.signature, seed=3)
    return network.to(memory_format=torch.channels_last) if model.type == "cnn" else network  # type: ignore[call-overload,no-any-return]


class Flat:
    """A network whose numbers lie side by side, and its updater."""

    def __init__(self, record: RunRecord) -> None:
        self.network = network_of(record)
        self.weights_P = flat_weights(self.network)
        self.gradient_P = torch.zeros_like(self.weights_P)
        self.updater = Updater(
            [record],
            self.network,
            weights_RP=self.weights_P.unsqueeze(0),
            gradients_RP=self.gradient_P.unsqueeze(0),
        )

    def step(self, gradients: list[Tensor], rate: float) -> None:
        offset = 0
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            view = self.gradient_P.as_strided(parameter.shape, parameter.stride(), offset)
            view.copy_(gradient)
            offset += parameter.numel()
        self.updater.apply([rate])


class Separate:
    """The same with an optimizer of PyTorch for separate parameters, and everything else spelled out."""

    def __init__(self, record: RunRecord) -> None:
        self.network, self.train = network_of(record), record.experiment.train
        parameters = self.network.parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=1.0)
            if self.train.optimizer == "adam"
            else torch.optim.SGD(parameters, lr=1.0, momentum=self.train.momentum, nesterov=self.train.momentum > 0)
        )

    def step(self, gradients: list[Tensor], rate: float) -> None:
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        weights = list(penalized_weights(self.network))
        penalty = sum(self.train.l1 * w.abs().sum() + self.train.l2 * w.square().sum() for w in weights)
        penalty.backward()  # type: ignore[union-attr]
        if self.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.train.clip_norm)
        with torch.no_grad():
            for parameter in self.network.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(1 - rate * self.train.weight_decay)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()


def gradients_of(network: nn.Module, steps: int) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield [torch.randn(p.shape, generator=generator) for p in network.parameters()]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("train", SETTINGS)
def test_a_flat_row_is_changed_as_separate_parameters_are(store: Any, model: str, train: dict[str, Any]) -> None:
    record = record_of(store, model, **train)
    flat, separate = Flat(record), Separate(record)
    for number, gradients in enumerate(gradients_of(flat.network, 5)):
        for one in (flat, separate):
            one.step(gradients, 0.1 / (number + 1))
    for found, expected in zip(flat.network.parameters(), separate.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_updater_continues_as_if_it_had_never_stopped(store: Any, model: str, optimizer: str) -> None:
    record = record_of(store, model, optimizer=optimizer)
    whole, first, second = Flat(record), Flat(record), Flat(record)
    for number, gradients in enumerate(gradients_of(whole.network, 6)):
        whole.step(gradients, 0.1)
        if number == 3:
            second.network.load_state_dict(first.network.state_dict())
            second.updater.load(first.updater.tensors())
        (first if number < 3 else second).step(gradients, 0.1)
    assert torch.equal(whole.weights_P, second.weights_P)
    assert {n: t.tolist() for n, t in whole.updater.tensors().items()} == {
        n: t.tolist() for n, t in second.updater.tensors().items()
    }


def test_the_state_of_an_optimizer_is_told_by_parameter(store: Any) -> None:
    flat = Flat(record_of(store, "cnn", optimizer="adam"))
    flat.step(next(gradients_of(flat.network, 1)), 0.1)
    found = flat.updater.tensors()
    names = [name for name, _ in flat.network.named_parameters()]
    assert set(found) == {f"{name}.{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}
    for name, parameter in flat.network.named_parameters():
        assert found[f"{name}.exp_avg"].shape == parameter.shape
        assert found[f"{name}.step"].item() == 1


def test_the_parameters_of_a_flat_network_are_views_in_their_own_layout(store: Any) -> None:
    record = record_of(store, "cnn")
    before, flat = network_of(record), Flat(record)
    for old, new in zip(before.parameters(), flat.network.parameters(), strict=True):
        assert torch.equal(old, new)
        assert old.stride() == new.stride()
    flat.weights_P.zero_()
    assert all(not p.any() for p in flat.network.parameters())
