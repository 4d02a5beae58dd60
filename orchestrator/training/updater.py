"""The rule by which a gradient changes the weights: penalty, clipping, decay, and a step of the optimizer.

All numbers of a network lie side by side in a row, and so do those of its gradient, so that a rule is a few operations
however many layers there are. Several networks of one structure have a row each and are changed together.
"""

# R = networks, P = numbers of a network's parameters

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.network import Network
from models.techniques import penalized_weights
from orchestrator.config import TrainConfig
from orchestrator.runs.record import RunRecord


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
        self._rows = [nn.Parameter(weights_P) for weights_P in weights_RP]
        places = defaultdict(list)
        for place, (row, gradient_P) in enumerate(zip(self._rows, gradients_RP, strict=True)):
            row.grad = gradient_P
            places[records[place].experiment.train.learning_rate].append(place)
        groups = [{"params": [self._rows[i] for i in alike], "places": alike} for alike in places.values()]
        self._optimizer = _optimizer(groups, self._settings)
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
        for alike in self._optimizer.param_groups:
            alike["lr"] = rates[alike["places"][0]]
        self._optimizer.step()

    def tensors(self, place: int = 0) -> dict[str, Tensor]:
        """A copy of a row's optimizer state, ``PARAMETER.KEY``; a number of all of it is every parameter's own."""
        row = self._rows[place]
        found: dict[str, Tensor] = {}
        for key, value in self._optimizer.state[row].items():
            if value is None:
                continue
            for stretch in self._stretches:
                own = stretch.of(value) if _is_row(value, row) else torch.as_tensor(value)
                found[f"{stretch.name}.{key}"] = own.detach().cpu().clone(memory_format=torch.contiguous_format)
        return found

    def load(self, tensors: dict[str, Tensor], place: int = 0) -> None:
        """Go on from what `tensors` returned."""
        row = self._rows[place]
        state = self._optimizer.state[row]
        for stretch in self._stretches:
            for name in [name for name in tensors if name.rpartition(".")[0] == stretch.name]:
                key, tensor = name.rpartition(".")[2], tensors[name]
                if key == "step" or tensor.shape != stretch.like.shape:
                    state[key] = tensor.clone()
                    continue
                stretch.of(state.setdefault(key, torch.zeros_like(row.detach()))).copy_(tensor)


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


def _is_row(value: object, row: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == row.shape


def _optimizer(groups: list[dict[str, object]], settings: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of rows; their learning rates are set before every update."""
    rate = settings.learning_rate
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True)
