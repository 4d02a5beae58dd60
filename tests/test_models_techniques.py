"""Activations, initial weights, the penalty and dropout keep their promises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.config import ResolvedTechniques
from models.techniques import (
    ACTIVATIONS,
    GAINS,
    Dropout,
    Initializer,
    counter_key,
    penalized_weights,
    set_random_state,
)

DEPTH, WIDTH = 12, 512


def initializer(activation: str | None, scheme: str = "normalized", *, std: float = 0.05, seed: int = 0) -> Initializer:
    techniques = ResolvedTechniques.model_validate(
        {
            "activation": activation,
            "initialization": scheme,
            "regularization": "none",
            "gradient": "stochastic",
            "processor": "cpu",
        }
    )
    return Initializer(techniques, initial_std=std, seed=seed)


def second_moments(activation: str, scheme: str, *, std: float = 0.05) -> list[float]:
    """Mean square after the activation, layer by layer, for inputs of variance 1."""
    draw = initializer(activation, scheme, std=std)
    x = torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(1))
    moments = []
    for _ in range(DEPTH):
        layer = nn.Linear(WIDTH, WIDTH)
        draw.hidden(layer)
        x = ACTIVATIONS[activation]()(layer(x)).detach()
        moments.append(x.square().mean().item())
    return moments


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_normalized_weights_keep_the_signal_through_depth(activation: str) -> None:
    moments = second_moments(activation, "normalized")
    assert moments[-1] == pytest.approx(moments[1], rel=0.35)
    assert moments[-1] > 0.3


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_small_constant_weights_lose_the_signal_through_depth(activation: str) -> None:
    moments = second_moments(activation, "constant", std=0.01)
    assert moments[-1] < 1e-10 * moments[0]


@pytest.mark.parametrize("activation", [name for name in GAINS if name != "tanh"])
def test_gains_undo_what_the_activation_does_to_a_standard_normal(activation: str) -> None:
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    moment = torch.trapezoid(density * ACTIVATIONS[activation]()(z).square(), z)
    assert GAINS[activation] ** 2 * moment.item() == pytest.approx(1.0, abs=1e-5)


def test_every_activation_has_a_gain() -> None:
    assert set(GAINS) == set(ACTIVATIONS)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(400, 30), nn.Conv2d(8, 64, 3), nn.LSTM(20, 64), nn.Embedding(300, 40)],
    ids=lambda layer: type(layer).__name__,
)
def test_constant_weights_have_the_same_deviation_in_every_layer(layer: nn.Module) -> None:
    draw = initializer("relu", "constant", std=0.07)
    fill(draw, layer)
    weights = [p for name, p in layer.named_parameters() if name.startswith("weight")]
    biases = [p for name, p in layer.named_parameters() if name.startswith("bias")]
    assert all(w.std().item() == pytest.approx(0.07, rel=0.06) for w in weights)
    assert not any(b.any() for b in biases)


def fill(draw: Initializer, layer: nn.Module) -> None:
    if isinstance(layer, nn.RNNBase):
        draw.recurrent(layer)
    elif isinstance(layer, nn.Embedding):
        draw.table(layer, std=9.0)
    else:
        draw.hidden(layer)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("relu", (2 / 400) ** 0.5), ("tanh", 5 / 3 * (2 / 430) ** 0.5), (None, (2 / 430) ** 0.5)],
)
def test_hidden_layers_are_he_for_relu_and_glorot_for_tanh(activation: str | None, expected: float) -> None:
    layer = nn.Linear(400, 30)
    initializer(activation).hidden(layer)
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)


def test_a_convolution_counts_its_whole_window() -> None:
    layer = nn.Conv2d(16, 64, 3)
    initializer("relu").hidden(layer)
    assert layer.weight.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.03)


def test_output_layers_are_glorot_whatever_the_activation() -> None:
    layer = nn.Linear(400, 30)
    initializer("relu").linear(layer)
    assert layer.weight.std().item() == pytest.approx((2 / 430) ** 0.5, rel=0.03)


@pytest.mark.parametrize(("cell", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_weights_are_orthogonal_gate_by_gate(cell: type[nn.RNNBase], gates: int) -> None:
    layer = cell(5, 16)
    initializer(None).recurrent(layer)
    matrices = layer.get_parameter("weight_hh_l0").detach().view(gates, 16, 16)
    identity = torch.eye(16).expand(gates, 16, 16)
    torch.testing.assert_close(matrices @ matrices.mT, identity, atol=1e-5, rtol=0)


def test_a_normalized_lstm_starts_out_remembering() -> None:
    layer = nn.LSTM(3, 4)
    initializer(None).recurrent(layer)
    bias = layer.get_parameter("bias_ih_l0") + layer.get_parameter("bias_hh_l0")
    assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


def test_the_penalty_covers_weights_and_nothing_else() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(3, 4), nn.GRU(2, 3), nn.Embedding(5, 2))
    conv, _, linear, gru, table = network
    weights = [conv.weight, linear.weight, *map(gru.get_parameter, ("weight_ih_l0", "weight_hh_l0")), table.weight]
    assert [id(weight) for weight in penalized_weights(network)] == [id(weight) for weight in weights]


class TwoDropouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.first, self.second = Dropout(0.25), Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


ONES = torch.ones(100, 100)
COUNTERS = {"seed": 0, "epoch": 1, "step": 2, "logical_worker": 3}


def masks(network: TwoDropouts, **counters: int) -> Tensor:
    set_random_state([network.first, network.second], device=torch.device("cpu"), **COUNTERS | counters)
    return torch.stack(network(ONES))


def test_dropout_masks_are_a_function_of_the_counters_alone() -> None:
    network = TwoDropouts()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = masks(network)
    assert torch.equal(torch.get_rng_state(), before)
    masks(network, step=9)
    torch.manual_seed(2)
    assert torch.equal(masks(network), first)
    assert torch.equal(masks(TwoDropouts()), first)


@pytest.mark.parametrize("counter", COUNTERS)
def test_every_counter_changes_the_masks(counter: str) -> None:
    network = TwoDropouts()
    assert not torch.equal(masks(network), masks(network, **{counter: 7}))


def test_dropout_layers_draw_different_masks_and_keep_the_mean() -> None:
    first, second = masks(TwoDropouts())
    assert first.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert second.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert first.mean().item() == pytest.approx(1.0, abs=0.03)
    both, either = (first.eq(0) & second.eq(0)).float().mean(), 0.25 * 0.5
    assert both.item() == pytest.approx(either, abs=0.02)


def test_dropout_does_nothing_in_evaluation() -> None:
    assert torch.equal(Dropout(0.5).eval()(ONES), ONES)


def test_dropout_without_a_random_state_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"dropout must be given its random state .* got none"):
        Dropout(0.5)(ONES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_dropout_masks_are_reproducible_on_a_gpu() -> None:
    network = TwoDropouts().cuda()
    layers, device = [network.first, network.second], torch.device("cuda")
    set_random_state(layers, device=device, **COUNTERS)
    first = torch.stack(network(ONES.cuda()))
    set_random_state(layers, device=device, **COUNTERS)
    assert torch.equal(torch.stack(network(ONES.cuda())), first)


def test_counter_keys_follow_the_published_splitmix64() -> None:
    assert counter_key(0) == 0xE220A8397B1DCDAF  # first output for seed 0 of the reference implementation


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5), st.integers(0, 4))
def test_counter_keys_fit_64_bits_and_differ_for_neighbours(counters: list[int], position: int) -> None:
    neighbour = list(counters)
    neighbour[position % len(counters)] += 1
    assert 0 <= counter_key(*counters) < 2**64
    assert counter_key(*counters) != counter_key(*neighbour)
