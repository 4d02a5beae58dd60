"""The rule by which a gradient changes the weights: penalty, clipping, decay, and a step of the optimizer.

All numbers of a network lie side by side in a row, and so do those of its gradient, so that a rule is a few operations
however many layers there are. Several networks of one structure have a row each and are changed together.
"""

# R = networks, P = numbers of a network's parameters

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from models.network import Network
from models.techniques import penalized_weights
from orchestrator.config import TrainConfig
from orchestrator.runs.record import RunRecord

STEP = "step"
"""How many steps Adam has made: one number of all parameters."""


class _Stretch(NamedTuple):
    """A parameter's place in a row."""

    name: str
    start: int
    stop: int
    like: nn.Parameter
    """Has its shape and memory layout."""

    def of(self, row_P: Tensor) -> Tensor:
        """The parameter's numbers as a view of a row."""
        return row_P.as_strided(self.like.shape, self.like.stride(), row_P.storage_offset() + self.start)


class Updater:
    """Changes rows of weights along rows of gradients, with one optimizer for all; learning rates may differ."""

    def __init__(
        self, records: Sequence[RunRecord], network: Network, *, weights_RP: Tensor, gradients_RP: Tensor
    ) -> None:
        """Change nothing yet.

        Args:
            records: of the networks' runs, which differ in seed and learning rate at most.
            network: one of them.
            weights_RP: changed in place by `apply`.
            gradients_RP: where gradients are found by `apply`; their memory stays the same.
        """
        self._settings = records[0].experiment.train
        kind = Adam if self._settings.optimizer == "adam" else SGD
        self._rows = [kind(w_P, g_P, self._settings) for w_P, g_P in zip(weights_RP, gradients_RP, strict=True)]
        self._stretches = list(_stretches(network))
        self._gradients_RP = gradients_RP
        is_penalized = records[0].techniques.regularization == "penalty"
        penalized = _joined(network, penalized_weights(network) if is_penalized else ())
        self._penalized = [(weights_RP[:, own], gradients_RP[:, own]) for own in penalized]
        self._decayed = [
            weights_RP[:, own] for own in _joined(network, (p for p in network.parameters() if p.ndim > 1))
        ]

    @torch.no_grad()
    def apply(self, rates: Sequence[float]) -> None:
        """Change every row of weights by its row of gradients, of the mean loss, with its learning rate."""
        settings = self._settings
        for weights_RN, gradients_RN in self._penalized:
            if settings.l2:
                gradients_RN.add_(weights_RN, alpha=2 * settings.l2)
            if settings.l1:
                gradients_RN.add_(weights_RN.sign(), alpha=settings.l1)
        if settings.clip_norm is not None:
            norm_R1 = self._gradients_RP.norm(dim=1, keepdim=True)
            self._gradients_RP.mul_(torch.clamp(settings.clip_norm / norm_R1, max=1.0))
        if settings.weight_decay:
            kept_R1 = 1 - torch.tensor(rates, device=self._gradients_RP.device).unsqueeze(1) * settings.weight_decay
            for weights_RN in self._decayed:
                weights_RN.mul_(kept_R1)
        for row, rate in zip(self._rows, rates, strict=True):
            row.step(rate)

    def tensors(self, place: int = 0) -> dict[str, Tensor]:
        """A copy of a row's optimizer state, ``PARAMETER.KEY``; a number of all of it is every parameter's own."""
        found: dict[str, Tensor] = {}
        for key, value in self._rows[place].state.items():
            for stretch in self._stretches:
                own = stretch.of(value) if value.ndim else value
                found[f"{stretch.name}.{key}"] = own.detach().cpu().clone(memory_format=torch.contiguous_format)
        return found

    def load(self, tensors: dict[str, Tensor], place: int = 0) -> None:
        """Go on from what `tensors` returned."""
        row = self._rows[place]
        by_stretch = {stretch.name: stretch for stretch in self._stretches}
        for name, tensor in tensors.items():
            parameter, _, key = name.rpartition(".")
            if key == STEP:
                row.state[key] = tensor.to(row.weights_P.device, torch.float32, copy=True)
            else:
                by_stretch[parameter].of(row.state.setdefault(key, torch.zeros_like(row.weights_P))).copy_(tensor)


class SGD:
    """Stochastic gradient descent of one row, with Nesterov's momentum.

    Both optimizers call the functions below PyTorch's classes: these import its compiler at the first step, which takes
    every process a second, and take longer than a small network's update.
    """

    def __init__(self, weights_P: Tensor, gradient_P: Tensor, settings: TrainConfig) -> None:
        self.weights_P, self.gradient_P, self.momentum = weights_P, gradient_P, settings.momentum
        self.state: dict[str, Tensor] = {}
        """The momentum, once there was a step."""

    def step(self, rate: float) -> None:
        """Change the weights along the gradient."""
        buffers = [self.state.get("momentum_buffer")]
        sgd(
            [self.weights_P],
            [self.gradient_P],
            buffers,
            fused=True,
            weight_decay=0.0,
            momentum=self.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=self.momentum > 0,
            maximize=False,
        )
        if buffers[0] is not None:
            self.state["momentum_buffer"] = buffers[0]


class Adam:
    """Adam (Kingma and Ba 2015) of one row; see `SGD`."""

    def __init__(self, weights_P: Tensor, gradient_P: Tensor, settings: TrainConfig) -> None:  # noqa: ARG002
        self.weights_P, self.gradient_P = weights_P, gradient_P
        self.state: dict[str, Tensor] = {}
        """The number of steps and both moments, once there was one."""

    def step(self, rate: float) -> None:
        """Change the weights along the gradient."""
        if not self.state:
            first_P, second_P = torch.zeros_like(self.weights_P), torch.zeros_like(self.weights_P)
            self.state |= {STEP: self.weights_P.new_zeros(()), "exp_avg": first_P, "exp_avg_sq": second_P}
        adam(
            [self.weights_P],
            [self.gradient_P],
            [self.state["exp_avg"]],
            [self.state["exp_avg_sq"]],
            [],
            [self.state[STEP]],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


def flat_weights(network: Network) -> Tensor:
    """Move a network's parameters side by side, in their order and each in its layout; return them as weights_P."""
    parameters = list(network.parameters())
    weights_P = torch.empty(sum(p.numel() for p in parameters), device=parameters[0].device)
    for stretch in _stretches(network):
        view = stretch.of(weights_P)
        stretch.like.data = view.copy_(stretch.like.detach())
    return weights_P


def _stretches(network: Network) -> Iterable[_Stretch]:
    start = 0
    for name, parameter in network.named_parameters():
        yield _Stretch(name, start, start + parameter.numel(), parameter)
        start += parameter.numel()


def _joined(network: Network, chosen: Iterable[nn.Parameter]) -> list[slice]:
    """The stretches of the chosen parameters, neighbours as one."""
    wanted = {id(parameter) for parameter in chosen}
    found: list[slice] = []
    for stretch in _stretches(network):
        if id(stretch.like) in wanted and found and found[-1].stop == stretch.start:
            found[-1] = slice(found[-1].start, stretch.stop)
        elif id(stretch.like) in wanted:
            found.append(slice(stretch.start, stretch.stop))
    return found
