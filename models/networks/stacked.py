"""Several MLPs of one structure as one: their weights lie side by side, and each layer computes for all of them.

A small layer takes a CPU less time than PyTorch takes to call it, and the calls are shared.
"""

# R = networks, P = numbers of a network's parameters, N = samples of each network, B = samples of a micro-batch,
# I = inputs of a layer, O = outputs, U = units, C = units of all micro-batches side by side

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.counters import counter_key
from models.inputs import Batch
from models.network import Network
from models.techniques import Dropout


class StackedNetwork(nn.Module):
    """Computes in training what several networks would, which differ in the numbers of their parameters only.

    It takes these and their running statistics over: those of the networks become views of its own, gradients too. So
    each of them can be looked at, judged and saved by itself at any time.

    Shape:
        a batch with N samples for the first network, N for the second, … -> their outputs in the same order
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        first = networks[0]
        self.weights_RP = torch.stack([nn.utils.parameters_to_vector(n.parameters()).detach() for n in networks])
        """All parameters of a network in a row, in the order of its `parameters`."""
        self.gradients_RP = torch.zeros_like(self.weights_RP)
        """Where `backward` adds to."""
        shared = _share_parameters(networks, self.weights_RP, self.gradients_RP)
        self._weights = [weight for weight, _ in shared.values()]
        self._gradients = [gradient for _, gradient in shared.values()]
        body = StackedMLP(networks, {name: weight for name, (weight, _) in shared.items()})
        self.network = Network(first.inputs, body, first.task, origin=first.origin)

    def begin_step(self, sizes: Sequence[int], keys: Sequence[Sequence[Sequence[int]]]) -> None:
        """Say what the next forward pass reads.

        Args:
            sizes: of the micro-batches, one after the other, that each network's samples consist of; the same for all.
            keys: of the dropout masks, for every network and micro-batch; see `set_random_state`.
        """
        for module in self.modules():
            if isinstance(module, StackedBatchNorm | StackedDropout):
                module.sizes = sizes
        dropouts = [module for module in self.modules() if isinstance(module, StackedDropout)]
        if dropouts:
            generators = [_generator(self.weights_RP.device, key) for row in keys for key in row]
            for dropout in dropouts:
                dropout.generators = generators

    def forward(self, batch: Batch) -> Tensor:
        """Return the outputs that the networks' task understands."""
        outputs: Tensor = self.network(batch)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, a sum over all networks, to theirs."""
        torch._foreach_add_(self._gradients, torch.autograd.grad(loss, self._weights))


class StackedMLP(nn.Module):
    """The bodies of the networks.

    Shape:
        x_(RN)I -> outputs_(RN)O
    """

    def __init__(self, networks: Sequence[Network], parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.num_networks = len(networks)
        names = [f"body.hidden.{name}" for name, _ in networks[0].get_submodule("body.hidden").named_children()]
        self.layers = nn.Sequential(*(_stacked(name, networks, parameters) for name in [*names, "body.head"]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        outputs_RNO: Tensor = self.layers(x.view(self.num_networks, -1, x.shape[1]))
        return outputs_RNO.flatten(0, 1)


class StackedLinear(nn.Module):
    """A linear layer of each network.

    Shape:
        x_RNI -> x_RNO
    """

    def __init__(self, weight_ROI: nn.Parameter, bias_RO: nn.Parameter | None) -> None:
        super().__init__()
        self.weight_ROI, self.bias_RO = weight_ROI, bias_RO

    def forward(self, x_RNI: Tensor) -> Tensor:
        """Return x_RNO."""
        weight_RIO = self.weight_ROI.transpose(1, 2)
        if self.bias_RO is None:
            return torch.bmm(x_RNI, weight_RIO)
        return torch.baddbmm(self.bias_RO.unsqueeze(1), x_RNI, weight_RIO)


class StackedBatchNorm(nn.Module):
    """Batch normalization of each network: every micro-batch by itself, all from the same running statistics.

    The statistics become the mean of what the micro-batches make of them. One of less than two samples leaves them as
    they are and is normalized by them.

    Shape:
        x_RNU -> x_RNU
    """

    sizes: Sequence[int]
    """Samples in each micro-batch."""

    def __init__(self, layers: Sequence[nn.BatchNorm1d], weight_RU: nn.Parameter, bias_RU: nn.Parameter) -> None:
        super().__init__()
        self.weight_RU, self.bias_RU = weight_RU, bias_RU
        assert layers[0].momentum is not None, "no mean over all steps"
        self.momentum, self.eps = layers[0].momentum, layers[0].eps
        self.statistics = [_share_buffer(layers, name) for name in ("running_mean", "running_var")]
        self.steps_R = _share_buffer(layers, "num_batches_tracked")

    def forward(self, x_RNU: Tensor) -> Tensor:
        """Return x_RNU normalized."""
        count = len(self.sizes)
        if len(set(self.sizes)) == 1:
            x_RNU, *sums = self._normalize(x_RNU, count)
        else:
            parts = [self._normalize(x_RBU, 1) for x_RBU in torch.split(x_RNU, list(self.sizes), dim=1)]
            x_RNU = torch.cat([part[0] for part in parts], dim=1)
            sums = [torch.stack([part[i] for part in parts]).sum(0) for i in (1, 2)]
        for statistic_RU, sum_RU in zip(self.statistics, sums, strict=True):
            statistic_RU.copy_(sum_RU / count)
        self.steps_R += 1
        return x_RNU

    def _normalize(self, x_RNU: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize `count` micro-batches of one size; return the sums of their running statistics, too.

        Every unit of every micro-batch becomes a channel of one ordinary batch normalization.
        """
        r, n, u = x_RNU.shape
        mean_C, var_C, weight_C, bias_C = (
            t_RU.repeat(1, count).flatten() for t_RU in (*self.statistics, self.weight_RU, self.bias_RU)
        )
        x_BC = x_RNU.reshape(r * count, n // count, u).transpose(0, 1).reshape(n // count, r * count * u)
        is_training = n // count > 1
        x_BC = F.batch_norm(x_BC, mean_C, var_C, weight_C, bias_C, is_training, self.momentum, self.eps)
        x_RNU = x_BC.view(n // count, r * count, u).transpose(0, 1).reshape(r, n, u)
        return x_RNU, mean_C.view(r, count, u).sum(1), var_C.view(r, count, u).sum(1)


class StackedDropout(nn.Module):
    """Dropout with the masks that every network would have by itself; see `Dropout`.

    Shape:
        x_RNU -> x_RNU
    """

    sizes: Sequence[int]
    """Samples in each micro-batch."""
    generators: Sequence[torch.Generator]
    """One for each micro-batch of each network."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_RNU: Tensor) -> Tensor:
        """Return ``x_RNU`` with units dropped."""
        if self.probability == 0.0:
            return x_RNU
        r, n, u = x_RNU.shape
        sizes = [*self.sizes] * r
        draws_RNU = torch.empty(r * n, u, device=x_RNU.device)
        for draws_BU, generator in zip(torch.split(draws_RNU, sizes), self.generators, strict=True):
            torch.rand(draws_BU.shape, generator=generator, out=draws_BU)
        keep_RNU = (draws_RNU.view(r, n, u) >= self.probability).to(x_RNU.dtype)
        return x_RNU * keep_RNU / (1.0 - self.probability)


def _share_parameters(
    networks: Sequence[Network], weights_RP: Tensor, gradients_RP: Tensor
) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Let the networks' parameters be views of the rows; return those of all together by name, with their gradients."""
    shared: dict[str, tuple[nn.Parameter, Tensor]] = {}
    start = 0
    for name, like in networks[0].named_parameters():
        stop = start + like.numel()
        weights, gradients = (rows_RP[:, start:stop].view(-1, *like.shape) for rows_RP in (weights_RP, gradients_RP))
        for network, weight, gradient in zip(networks, weights, gradients, strict=True):
            own = network.get_parameter(name)
            own.data, own.grad = weight, gradient
        shared[name] = nn.Parameter(weights), gradients
        start = stop
    return shared


def _share_buffer(layers: Sequence[nn.Module], name: str) -> Tensor:
    """Let a buffer of every layer be a view of one tensor; return that."""
    shared = torch.stack([layer.get_buffer(name) for layer in layers])
    for layer, own in zip(layers, shared, strict=True):
        setattr(layer, name, own)
    return shared


def _stacked(name: str, networks: Sequence[Network], parameters: dict[str, nn.Parameter]) -> nn.Module:
    """The layers of this name as one."""
    layers = [network.get_submodule(name) for network in networks]
    match layers[0]:
        case nn.Linear():
            return StackedLinear(parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
        case nn.BatchNorm1d():
            norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm1d)]
            return StackedBatchNorm(norms, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
        case Dropout() as dropout:
            return StackedDropout(dropout.probability)
    return type(layers[0])()  # an activation, which has no state


def _generator(device: torch.device, key: Sequence[int]) -> torch.Generator:
    generator = torch.Generator(device)
    generator.manual_seed(counter_key(*key))
    return generator
