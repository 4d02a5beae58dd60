"""The why panel: what every layer's units and weights do in an epoch, from a few looks at its training steps.

For every layer and epoch it tells

- `dead`: share of units whose activation was exactly 0 in every sample looked at. A unit is a channel of a convolution
  (0 at every place), or a hidden unit (0 at every real step of a recurrent net). Of activations of the ReLU family
  only: a dead ReLU unit passes no gradient, and so stays dead (Maas et al. 2013); the others of the family are hardly
  ever exactly 0.
- `saturated`: share of activations with next to no slope. tanh: |a| > 0.97. `gru` and `lstm`: of their gates, those
  below 0.1 or above 0.9 (Karpathy et al. 2015). The ReLU family has none.
- `variance`: of the layer's activations, over that of the numbers that the first layer reads (for words: of their
  embedding). An initialization is good that keeps it near a constant through all layers (Glorot and Bengio 2010,
  equation 5; He et al. 2015).
- `gradient_norm`: of the mean loss to the layer's weights, summed over all workers, before penalty and clipping.
- `update_ratio`: norm of the change of the layer's weights in an update, over their norm. About 1e-3 is healthy.
- `samples`: how many the first three are of.

`None` stands for what a layer does not have, or is not a finite number. The first three are measured on logical worker
0's share of the batch, in the real forward pass; the next two on the update that follows it. So no process needs to
hear of another, and the numbers are the same for every worker count. Nothing here changes what a training computes.
"""

# B = batch, T = time steps, H = hidden units, X = numbers read at a step, G = gates times hidden units, U = units

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.inputs import Steps
from models.network import Network
from models.networks.cnn import CNN, Block, ResidualPair
from models.networks.fm import FM
from models.networks.mlp import MLP
from models.networks.rnn import RNN
from models.techniques import ACTIVATIONS

LOOKS_PER_EPOCH = 8
STEPS_PER_LOOK = 16  # at least: one look in the 23 steps of `digits-mlp` takes 1.7 % of an epoch (benchmarks/why.py)
SATURATED_TANH = 0.97  # there its slope, 1 - a², is 0.06
SATURATED_GATE = math.log(9)  # of the sum before the sigmoid, which is then 0.9; or 0.1 for its negative
SIGNIFICANT_DIGITS = 6  # keeps a run's history small

GATES: Mapping[type[nn.RNNBase], tuple[int, ...]] = {nn.GRU: (0, 1), nn.LSTM: (0, 1, 3)}
"""Which quarters or thirds of a cell's weights belong to sigmoid gates."""


class LayerRow(TypedDict):
    """One layer of the panel; see the top of the file."""

    layer: str
    samples: int
    dead: float | None
    saturated: float | None
    variance: float | None
    gradient_norm: float | None
    update_ratio: float | None


class Layer(NamedTuple):
    """What the panel calls a layer."""

    name: str
    weights: list[nn.Parameter]
    """Without biases and normalization, whose size says little."""
    activation: nn.Module | None = None
    """The module that puts out the layer's activations."""
    units: int = 0
    can_die: bool = False


class Sums(NamedTuple):
    """One layer's sums over the epoch's looks so far: views of one table, which stays on the network's device."""

    saturated: Tensor
    saturable: Tensor
    variance: Tensor
    gradient_norm: Tensor
    update_norm: Tensor
    weight_norm: Tensor


class Diagnostics:
    """Looks at some steps of every epoch.

    Wrap each forward pass of training in `look` and each weight update in `update`; call `end_epoch` for the panel.
    """

    def __init__(self, network: Network, *, num_steps: int) -> None:
        self.layers = layers_of(network)
        self._weights = [weight for layer in self.layers for weight in layer.weights]
        self._body, self._reader = network.body, _reader(network)
        self._looks = look_steps(num_steps)
        rows = torch.tensor([row for row, layer in enumerate(self.layers) for _ in layer.weights])
        device = self._weights[0].device
        self._owner_LN = F.one_hot(rows, len(self.layers)).T.double().to(device)  # N = weights, each of one layer
        self._sums_LM = torch.zeros(len(self.layers) + 1, len(Sums._fields), dtype=torch.float64, device=device)
        *sums, self._input = (Sums(*sums_M.unbind()) for sums_M in self._sums_LM)
        self._sums = dict(zip((layer.name for layer in self.layers), sums, strict=True))
        self._silent = {
            layer.name: torch.empty(layer.units, dtype=torch.bool, device=device)
            for layer in self.layers
            if layer.can_die
        }
        """Units whose activation has always been 0."""
        self._start()

    @contextmanager
    def look(self, step: int, *, logical_worker: int) -> Iterator[None]:
        """Look at the forward pass inside, if it is logical worker 0's in one of the steps that are looked at."""
        if logical_worker != 0 or step not in self._looks:
            yield
            return
        handles = [self._body.register_forward_pre_hook(self._see_batch)]
        if self._reader is not None:
            handles.append(self._reader.register_forward_pre_hook(self._see_input))
        for layer in self.layers:
            if layer.activation is not None:
                handles.append(layer.activation.register_forward_hook(partial(self._see_layer, layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._looked = True

    @contextmanager
    def update(self) -> Iterator[None]:
        """Measure the weight update inside, if a look came before it; the weights' gradients must be in place."""
        if not self._looked:
            yield
            return
        now = [weight.detach() for weight in self._weights]
        before = [weight.clone() for weight in now]
        gradient_norms_L = self._norms([_gradient(weight) for weight in self._weights])
        yield
        update_norms_L, weight_norms_L = self._norms(torch._foreach_sub(now, before)), self._norms(before)
        self._sums_LM[:-1, 3:] += torch.stack([gradient_norms_L, update_norms_L, weight_norms_L], dim=1)
        self._updates += 1
        self._looked = False

    def end_epoch(self) -> list[LayerRow]:
        """Return the panel of the epoch, from the first layer to the last, and begin a new one.

        It is empty where nothing was looked at.
        """
        state = self.state()
        rows = [_row(layer, state) for layer in self.layers] if state else []
        self._start()
        return rows

    def state(self) -> dict[str, Any]:
        """Return what was seen of the epoch so far, as plain numbers that JSON keeps; after an update only."""
        assert not self._looked, "a look waits for its update"
        if not self._samples and not self._updates:
            return {}
        sums = {layer.name: sums for layer, sums in zip(self.layers, self._sums_LM.tolist(), strict=False)}
        return {
            "samples": self._samples,
            "updates": self._updates,
            "input_variance": float(self._input.variance),
            "sums": {name: dict(zip(Sums._fields, found, strict=True)) for name, found in sums.items()},
            "silent": {name: found_U.nonzero().flatten().tolist() for name, found_U in self._silent.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; from the start of an epoch where it is empty."""
        self._start()
        if not state:
            return
        self._samples, self._updates = state["samples"], state["updates"]
        self._input.variance.fill_(state["input_variance"])
        for name, sums in self._sums.items():
            for measure, total in sums._asdict().items():
                total.fill_(state["sums"][name][measure])
        for name, silent_U in self._silent.items():
            silent_U.zero_()[state["silent"][name]] = True

    def _start(self) -> None:
        self._samples = self._updates = 0
        self._looked = False
        self._real_BT: Tensor | None = None
        self._sums_LM.zero_()
        for silent_U in self._silent.values():
            silent_U.fill_(True)

    @torch.no_grad()
    def _see_batch(self, body: nn.Module, inputs: tuple[Any, ...]) -> None:
        first = inputs[0][0] if isinstance(inputs[0], tuple) else inputs[0]
        self._samples += len(first)
        if isinstance(body, RNN):
            self._real_BT = _real_steps(inputs[0], segment=body.segment)

    @torch.no_grad()
    def _see_input(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._input.variance.add_(_variance(self._real(inputs[0])))

    @torch.no_grad()
    def _see_layer(self, layer: Layer, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        sums = self._sums[layer.name]
        activations = output[0] if isinstance(module, nn.RNNBase) else output
        real = self._real(activations).float()
        sums.variance.add_(_variance(real))
        if layer.can_die:
            self._silent[layer.name] &= _silent_units(real)
            return
        if isinstance(module, nn.GRU | nn.LSTM):
            saturated = self._real(gate_sums(module, inputs[0], activations)).abs() > SATURATED_GATE
        else:
            saturated = real.abs() > SATURATED_TANH
        sums.saturated.add_(saturated.count_nonzero())
        sums.saturable.add_(saturated.numel())

    def _real(self, x: Tensor) -> Tensor:
        """Without the padding of short samples, which has no influence on anything."""
        return x if self._real_BT is None else x[self._real_BT]

    def _norms(self, tensors: Iterable[Tensor]) -> Tensor:
        """One norm for each layer."""
        squares_N = torch.stack(torch._foreach_norm(list(tensors))).double().square()
        return (self._owner_LN @ squares_N).sqrt()


def look_steps(num_steps: int) -> frozenset[int]:
    """The steps of an epoch that are looked at: up to 8, evenly spread, not more than one in 16 (but one at least)."""
    count = min(LOOKS_PER_EPOCH, max(1, num_steps // STEPS_PER_LOOK))
    return frozenset((2 * i + 1) * num_steps // (2 * count) for i in range(count))


def layers_of(network: Network) -> list[Layer]:
    """The layers of the panel, in the order in which they compute."""
    body = network.body
    match body:
        case MLP():
            return [*_hidden_layers(body.hidden), _weights_only("output", body.head)]
        case CNN():
            return [*_block_layers(body.blocks), _weights_only("output", body.head)]
        case RNN():
            return [*_recurrent_layers(body), _weights_only("output", body.head)]
        case FM():
            return [_weights_only("weights", body.weights), _weights_only("factors", body.factors)]
    raise AssertionError(f"no layers are known of {type(body).__name__}")


def gate_sums(cell: nn.RNNBase, x_BTX: Tensor, states_BTH: Tensor) -> Tensor:
    """What the sigmoids of a recurrent layer's gates read, all time steps at once, for the states are known.

    Shape:
        -> [B, T, gates, H]
    """
    before_BTH = F.pad(states_BTH[:, :-1], (0, 0, 1, 0))
    from_input_BTG = F.linear(x_BTX, cell.get_parameter("weight_ih_l0"), cell.get_parameter("bias_ih_l0"))
    from_state_BTG = F.linear(before_BTH, cell.get_parameter("weight_hh_l0"), cell.get_parameter("bias_hh_l0"))
    gates = torch.split(from_input_BTG + from_state_BTG, cell.hidden_size, dim=-1)
    return torch.stack([gates[i] for i in GATES[type(cell)]], dim=2)


def _row(layer: Layer, state: Mapping[str, Any]) -> LayerRow:
    sums, silent = state["sums"][layer.name], state["silent"].get(layer.name)
    has_units = layer.activation is not None
    return {
        "layer": layer.name,
        "samples": state["samples"],
        "dead": None if silent is None else _ratio(len(silent), layer.units),
        "saturated": _ratio(sums["saturated"], sums["saturable"]),
        "variance": _ratio(sums["variance"], state["input_variance"]) if has_units else None,
        "gradient_norm": _ratio(sums["gradient_norm"], state["updates"]),
        "update_ratio": _ratio(sums["update_norm"], sums["weight_norm"]),
    }


def _hidden_layers(hidden: Iterable[nn.Module]) -> Iterator[Layer]:
    linears = [m for m in hidden if isinstance(m, nn.Linear)]
    activations = [m for m in hidden if type(m) in ACTIVATIONS.values()]
    for i, (linear, activation) in enumerate(zip(linears, activations, strict=True), 1):
        yield _activated(f"hidden {i}", linear, activation, units=linear.out_features)


def _block_layers(blocks: Iterable[nn.Module]) -> Iterator[Layer]:
    """`block 2`, and for the residual pair after it `residual 2a` and `residual 2b`."""
    number = 0
    for module in blocks:
        if isinstance(module, Block):
            number += 1
            yield _block_layer(f"block {number}", module)
        elif isinstance(module, ResidualPair):
            yield _block_layer(f"residual {number}a", module.first)
            yield _block_layer(f"residual {number}b", module.second)


def _block_layer(name: str, block: Block) -> Layer:
    return _activated(name, block.convolution, block.activation, units=block.convolution.out_channels)


def _recurrent_layers(body: RNN) -> Iterator[Layer]:
    if not isinstance(body.embedding, nn.Identity):
        yield _weights_only("embedding", body.embedding)
    for i, cell in enumerate(body.layers, 1):
        assert isinstance(cell, nn.RNNBase)
        yield _activated(f"recurrent {i}", cell, cell, units=cell.hidden_size)


def _activated(name: str, holder: nn.Module, activation: nn.Module, *, units: int) -> Layer:
    return Layer(name, _weights(holder), activation, units, can_die=_can_die(activation))


def _can_die(activation: nn.Module) -> bool:
    if isinstance(activation, nn.RNNBase):
        return isinstance(activation, nn.RNN) and activation.nonlinearity == "relu"
    return not isinstance(activation, nn.Tanh)


def _weights_only(name: str, holder: nn.Module) -> Layer:
    return Layer(name, _weights(holder))


def _weights(holder: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in holder.named_parameters(recurse=False) if name.startswith("weight")]


def _reader(network: Network) -> nn.Module | None:
    """The module whose input the activations' variance is compared with."""
    body = network.body
    if isinstance(body, RNN):
        return body.layers[0]
    return None if isinstance(body, FM) else body


def _real_steps(steps: Steps, *, segment: int) -> Tensor | None:
    """Which steps of each sample hold something real, as [B, T]; ``None`` if all do."""
    if steps.length_B is None:
        return None
    real_B1 = ((steps.length_B + segment - 1) // segment).unsqueeze(1)
    count = -(-steps.x.shape[1] // segment)
    return torch.arange(count, device=steps.length_B.device) < real_B1


def _variance(x: Tensor) -> Tensor:
    """Return the variance of all numbers; 0 if there are none."""
    return x.float().var(correction=0) if x.numel() else x.new_zeros(())


def _silent_units(activations: Tensor) -> Tensor:
    """Which units are 0 everywhere. A unit is an index of dimension 1 of a picture, else of the last dimension."""
    units_at = 1 if activations.ndim == 4 else activations.ndim - 1
    others = [d for d in range(activations.ndim) if d != units_at]
    # A sum of magnitudes is 0 only if all are: on a CPU many times faster than `any` or a maximum over dimensions.
    return activations.abs().sum(others) == 0


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None, "an update needs the gradient of every weight"
    return weight.grad


def _ratio(part: float, whole: float) -> float | None:
    if not whole or not math.isfinite(part / whole):
        return None  # JSON has no word for infinity
    return float(f"{part / whole:.{SIGNIFICANT_DIGITS}g}")
