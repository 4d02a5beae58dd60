"""The choices that the ledger compares, as code: activations, initial weights, the penalty, and dropout.

Nothing here reads or moves PyTorch's global random state: initial weights and dropout masks are pure functions of
the numbers that are handed in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.config import Activation, Initialization, ResolvedTechniques
from models.counters import counter_key

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

GAINS: Mapping[Activation, float] = {
    "tanh": 5 / 3,  # as torch.nn.init.calculate_gain: variance settles near 0.4 instead of fading as 1 / depth
    "relu": 2**0.5,  # this and the rest: 1 / sqrt(E[f(z)²]) for z ~ N(0, 1), which is He et al. 2015 for relu
    "leaky_relu": 1.414143,
    "elu": 1.245198,
    "gelu": 1.533530,
    "silu": 1.676533,
}


class Initializer:
    """Draws a body's initial weights, in the order in which the body asks for its layers.

    `constant`: every weight of every layer is N(0, `initial_std`²). `normalized`: the variance follows from the
    layer's shape and activation, so that signals keep their size through depth. Biases start at 0 in both, but for
    the forget gate of a normalized LSTM.
    """

    def __init__(self, techniques: ResolvedTechniques, *, initial_std: float, seed: int) -> None:
        self.scheme: Initialization = techniques.initialization
        self.activation = techniques.activation
        self.initial_std = initial_std
        self.generator = torch.Generator().manual_seed(counter_key(seed))

    def hidden(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Initialize a layer whose outputs go through the activation: He, or Glorot for tanh and for none."""
        if self.activation is None or self.activation == "tanh":
            gain = 1.0 if self.activation is None else GAINS[self.activation]
            self._fill(layer.weight, glorot_std(layer.weight, gain=gain))
        else:
            self._fill(layer.weight, he_std(layer.weight, gain=GAINS[self.activation]))
        _zero_bias(layer)

    def linear(self, layer: nn.Linear) -> None:
        """Initialize a layer without activation, such as the last one: Glorot."""
        self._fill(layer.weight, glorot_std(layer.weight, gain=1.0))
        _zero_bias(layer)

    def recurrent(self, layer: nn.RNNBase) -> None:
        """Initialize a recurrent layer gate by gate: Glorot from the input, orthogonal from the state.

        Orthogonal matrices keep gradients over time (Saxe et al. 2014). A forget gate of 1 lets an LSTM remember
        from the start (Jozefowicz et al. 2015).
        """
        size = layer.hidden_size
        for name, parameter in layer.named_parameters():
            for gate in torch.split(parameter.detach(), size):
                if name.startswith("bias"):
                    gate.zero_()
                elif self.scheme == "normalized" and name.startswith("weight_hh"):
                    nn.init.orthogonal_(gate, generator=self.generator)
                else:
                    self._fill(gate, glorot_std(gate, gain=1.0))
        if isinstance(layer, nn.LSTM) and self.scheme == "normalized":
            _input_bias(layer).detach()[size : 2 * size] = 1.0  # the gates are input, forget, cell, output

    def table(self, layer: nn.Embedding, *, std: float) -> None:
        """Initialize an embedding table; ``std`` is what `normalized` means for it."""
        self._fill(layer.weight, std)

    def _fill(self, weight: Tensor, std: float) -> None:
        std = self.initial_std if self.scheme == "constant" else std
        weight.detach().normal_(0.0, std, generator=self.generator)


def empty_table(rows: int, columns: int) -> nn.Embedding:
    """Return a table for `Initializer.table`; PyTorch's own initial weights would take its compiler to be imported."""
    return nn.Embedding.from_pretrained(torch.empty(rows, columns), freeze=False)  # type: ignore[no-untyped-call,no-any-return]


def glorot_std(weight: Tensor, *, gain: float) -> float:
    """Standard deviation that serves both directions (Glorot and Bengio 2010). ``weight``: [out, in, ...]."""
    receptive = weight[0, 0].numel()
    fan_sum = (weight.shape[0] + weight.shape[1]) * receptive
    return float(gain * (2.0 / fan_sum) ** 0.5)


def he_std(weight: Tensor, *, gain: float) -> float:
    """Standard deviation that keeps the forward signal (He et al. 2015). ``weight``: [out, in, ...]."""
    return float(gain * weight[0].numel() ** -0.5)


def _zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        layer.bias.detach().zero_()


def _input_bias(layer: nn.RNNBase) -> Tensor:
    return layer.get_parameter("bias_ih_l0")


def penalty(network: nn.Module, *, l1: float, l2: float) -> Tensor:
    """Return ``l1 · Σ|w| + l2 · Σw²`` over all weights; biases and normalization layers are left out."""
    weights = list(penalized_weights(network))
    total = weights[0].new_zeros(())
    for weight in weights:
        if l1:
            total = total + l1 * weight.abs().sum()
        if l2:
            total = total + l2 * weight.square().sum()
    return total


def penalized_weights(network: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights of linear, convolution, recurrent and embedding layers."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.RNNBase | nn.Embedding):
            yield from (p for name, p in module.named_parameters(recurse=False) if name.startswith("weight"))


class Dropout(nn.Module):
    """Zeroes a share of units in training and scales up the rest (Srivastava et al. 2014).

    Its masks come from a generator that `set_random_state` sets before every micro-batch.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of any shape, with units dropped when training."""
        if not self.training or self.probability == 0.0:
            return x
        if self.generator is None:
            raise RuntimeError(
                "dropout must be given its random state before a training step, got none. Call Network.begin_batch."
            )
        draws = torch.rand(x.shape, generator=self.generator, device=x.device)
        keep = (draws >= self.probability).to(x.dtype)
        return x * keep / (1.0 - self.probability)

    def extra_repr(self) -> str:
        """Show the probability in the network's printed form."""
        return f"probability={self.probability}"


def set_random_state(
    layers: Sequence[Dropout], *, device: torch.device, seed: int, epoch: int, step: int, logical_worker: int
) -> None:
    """Make the dropout masks of the next forward pass a pure function of these four counters.

    Args:
        layers: all dropout layers of a network, which draw from one generator, one after another.
        device: where the network is.
        seed: the training's.
        epoch: the batch's.
        step: the batch's.
        logical_worker: the batch's.
    """
    if not layers:
        return
    generator = layers[0].generator
    if generator is None or generator.device != device:
        generator = torch.Generator(device)
        for layer in layers:
            layer.generator = generator
    generator.manual_seed(counter_key(seed, epoch, step, logical_worker))
