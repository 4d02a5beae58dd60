"""Networks of every kind: shapes, learning, gradients, saved state, reproducible weights, and what they refuse."""

import itertools
import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from safetensors.torch import load, save
from torch import Tensor, nn

from models.config import ModelConfig, ResolvedTechniques, Techniques, resolve_techniques
from models.features import (
    CategoricalFeature,
    ClassTarget,
    Feature,
    ForecastTarget,
    ImageFeature,
    NumberTarget,
    SeriesFeature,
    Signature,
    Target,
    VectorFeature,
)
from models.fm import PAIRWISE_VARIANCE
from models.network import MODELS, Network, build, example_batch, example_target, summary
from models.techniques import set_random_state

IMAGE = ImageFeature(shape=(3, 32, 32), mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 66.0))
DIGIT = ImageFeature(shape=(1, 8, 8), mean=(78.0,), std=(96.0,))
VECTOR = VectorFeature(names=("age", "income", "always one"), mean=(40.0, 3e4, 1.0), std=(12.0, 1e4, 0.0))
COLOUR = CategoricalFeature(vocabulary=("red", "green", "blue"))
USER = CategoricalFeature(vocabulary=tuple(f"u{i}" for i in range(100)))
SERIES = SeriesFeature(channels=("load", "oil"), mean=(10.0, -3.0), std=(4.0, 2.0))
CLASSES = ClassTarget(classes=("a", "b", "c", "d"))
NUMBER = NumberTarget(mean=3.5, std=1.1, minimum=1.0, maximum=5.0)
FORECAST = ForecastTarget(lookback=24, horizon=6)


def model(**settings: object) -> ModelConfig:
    return TypeAdapter(ModelConfig).validate_python(settings)


def signature(target: Target, **features: Feature) -> Signature:
    return Signature(features=features, target=target)


def network(config: ModelConfig, data: Signature, *, preset: str = "deep", seed: int = 0, **choices: str) -> Network:
    techniques = Techniques.model_validate({"preset": preset, **choices})
    return build(config, resolve_techniques(techniques, config, gpu_available=False), data, seed=seed)


SMALL_MLP = model(type="mlp", hidden=[32, 16])
SMALL_CNN = model(type="cnn", channels=[8, 16])
RESNET = model(type="cnn", channels=[8, 8, 16, 16], residual=True)
FM = model(type="fm", factors=4)
CASES = {
    "mlp-image-class": (SMALL_MLP, signature(CLASSES, picture=IMAGE)),
    "mlp-everything-number": (SMALL_MLP, signature(NUMBER, picture=DIGIT, row=VECTOR, colour=COLOUR)),
    "mlp-forecast": (SMALL_MLP, signature(FORECAST, series=SERIES)),
    "mlp-forecast-with-vector": (SMALL_MLP, signature(FORECAST, row=VECTOR, series=SERIES)),
    "cnn-class": (SMALL_CNN, signature(CLASSES, picture=IMAGE)),
    "cnn-number": (SMALL_CNN, signature(NUMBER, picture=IMAGE)),
    "resnet-class": (RESNET, signature(CLASSES, picture=IMAGE)),
    "cnn-digits-deeper-than-the-picture": (
        model(type="cnn", channels=[8, 8, 16, 16, 16]),
        signature(CLASSES, picture=DIGIT),
    ),
    "resnet-digits": (RESNET, signature(CLASSES, picture=DIGIT)),
    "rnn-simple": (model(type="rnn", cell="simple", hidden_size=16), signature(FORECAST, series=SERIES)),
    "rnn-gru": (model(type="rnn", cell="gru", hidden_size=16, layers=2), signature(FORECAST, series=SERIES)),
    "rnn-lstm": (model(type="rnn", cell="lstm", hidden_size=16), signature(FORECAST, series=SERIES)),
    "rnn-segments": (model(type="rnn", segment=6, hidden_size=16), signature(FORECAST, series=SERIES)),
    "fm-class": (FM, signature(CLASSES, user=USER, colour=COLOUR, row=VECTOR)),
    "fm-number": (FM, signature(NUMBER, user=USER, colour=COLOUR)),
    "fm-numbers-only": (FM, signature(NUMBER, row=VECTOR)),
}
PRESETS = ("traditional", "deep")


def every_case(test: Callable[..., None]) -> Callable[..., None]:
    params = [pytest.param(*CASES[name], p, id=f"{name}-{p}") for name, p in itertools.product(CASES, PRESETS)]
    return pytest.mark.parametrize(("config", "data", "preset"), params)(test)


def train_mode(net: Network, *, step: int = 0) -> Network:
    set_random_state(net, seed=0, epoch=0, step=step, logical_worker=0)
    return net.train()


def loss(net: Network, batch: dict[str, Tensor], target: Tensor) -> Tensor:
    return net.task.loss_sum(net(batch), target) / len(target)


def test_the_cases_cover_every_model() -> None:
    assert {config.type for config, _ in CASES.values()} == set(MODELS)


@every_case
def test_outputs_and_answers_have_the_shape_of_the_target(config: ModelConfig, data: Signature, preset: str) -> None:
    net = network(config, data, preset=preset).eval()
    batch, target = example_batch(data, size=5, seed=1), example_target(data, size=5, seed=2)
    expected = (5, 4) if data.target.kind == "class" else tuple(target.shape)
    assert net(batch).shape == net.predict(batch).shape == expected
    assert net.predict(batch).isfinite().all()


@every_case
def test_every_parameter_gets_a_gradient(config: ModelConfig, data: Signature, preset: str) -> None:
    net = train_mode(network(config, data, preset=preset))
    loss(net, example_batch(data, size=64, seed=1), example_target(data, size=64, seed=2)).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@every_case
def test_state_survives_safetensors_bit_for_bit(config: ModelConfig, data: Signature, preset: str) -> None:
    net = train_mode(network(config, data, preset=preset))
    batch = example_batch(data, size=8, seed=1)
    net(batch)  # moves the running statistics
    other = network(config, data, preset=preset, seed=1)
    other.load_state_dict(load(save(net.state_dict())))
    assert torch.equal(other.eval()(batch), net.eval()(batch))


@every_case
def test_weights_are_a_function_of_the_seed_alone(config: ModelConfig, data: Signature, preset: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = network(config, data, preset=preset, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = network(config, data, preset=preset, seed=7).state_dict()
    other = network(config, data, preset=preset, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_case
def test_no_weight_is_left_uninitialized(config: ModelConfig, data: Signature, preset: str) -> None:
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        state = network(config, data, preset=preset).state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in state.values())


OVERFIT = [
    "mlp-everything-number",
    "mlp-forecast",
    "cnn-class",
    "resnet-digits",
    "rnn-simple",
    "rnn-segments",
    "rnn-lstm",
    "fm-class",
    "fm-number",
]


@pytest.mark.parametrize("name", OVERFIT)
def test_one_batch_can_be_learned_by_heart(name: str) -> None:
    config, data = CASES[name]
    net = network(config, data, regularization="none").train()
    batch, target = example_batch(data, size=16, seed=1), example_target(data, size=16, seed=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    first = loss(net, batch, target).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss(net, batch, target).backward()
        optimizer.step()
    assert loss(net, batch, target).item() < 0.1 * first


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (SMALL_CNN, signature(CLASSES, row=VECTOR), "exactly one image for model.type cnn, got vector 'row'"),
        (SMALL_CNN, signature(CLASSES, left=IMAGE, right=IMAGE), "got image 'left', image 'right'"),
        (SMALL_CNN, signature(FORECAST, picture=IMAGE), "exactly one series for a forecast, got image 'picture'"),
        (model(type="rnn"), signature(FORECAST, row=VECTOR, series=SERIES), "exactly one series for model.type rnn"),
        (model(type="rnn"), signature(CLASSES, series=SERIES), "target must be a forecast .* got class"),
        (model(type="rnn", segment=7), signature(FORECAST, series=SERIES), r"segment must divide .* \(24\), got 7"),
        (FM, signature(CLASSES, picture=IMAGE, user=USER), "must be categorical or vectors .* fm, got image 'picture'"),
        (FM, signature(CLASSES), "features must be categorical or vectors for model.type fm, got none"),
        (FM, signature(FORECAST, series=SERIES), "features must be categorical or vectors .* got series 'series'"),
        (SMALL_MLP, signature(NUMBER, user=USER), "feature 'user' must have at most 64 values .* got 101"),
        (SMALL_MLP, signature(NUMBER), "features must be at least one for model.type mlp, got none"),
    ],
)  # fmt: skip
def test_features_that_a_model_cannot_read_are_refused_by_name(
    config: ModelConfig, data: Signature, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        network(config, data)


@pytest.mark.parametrize(
    ("config", "data", "activation", "message"),
    [
        (FM, signature(NUMBER, user=USER), "relu", "techniques.activation must be None for model.type fm, got 'relu'"),
        (model(type="rnn"), signature(FORECAST, series=SERIES), "tanh", "must be None for model.type rnn, got 'tanh'"),
        (SMALL_MLP, signature(NUMBER, row=VECTOR), None, "techniques.activation must be chosen for model.type mlp"),
        (model(type="rnn", cell="simple"), signature(FORECAST, series=SERIES), "gelu", "tanh or relu .* got 'gelu'"),
    ],
)  # fmt: skip
def test_a_technique_that_a_model_does_not_have_is_refused_by_name(
    config: ModelConfig, data: Signature, activation: str | None, message: str
) -> None:
    techniques = ResolvedTechniques.model_validate(
        {
            "activation": activation,
            "initialization": "normalized",
            "regularization": "layers",
            "gradient": "stochastic",
            "processor": "cpu",
        }
    )
    with pytest.raises(ValueError, match=message):
        build(config, techniques, data, seed=0)


@pytest.mark.parametrize("residual", [False, True])
def test_channels_last_gives_the_same_answers(residual: bool) -> None:
    config, data = model(type="cnn", channels=[8, 16], residual=residual), signature(CLASSES, picture=IMAGE)
    net = network(config, data).eval()
    batch = example_batch(data, size=4, seed=1)
    expected = net(batch)
    net = net.to(memory_format=torch.channels_last)
    last = {"picture": batch["picture"].contiguous(memory_format=torch.channels_last)}
    assert net.inputs(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(last), expected)


def test_resnet_9_has_its_published_size() -> None:
    config = model(type="cnn", channels=[64, 128, 256, 512], residual=True)
    data = signature(ClassTarget(classes=tuple("abcdefghij")), picture=IMAGE)
    assert summary(network(config, data))["parameters"] == 6_573_130  # Page 2018: 6.57 million


def test_the_summary_counts_every_parameter() -> None:
    net = network(SMALL_MLP, signature(NUMBER, row=VECTOR), regularization="none")
    assert summary(net) == {
        "parameters": 3 * 32 + 32 + 32 * 16 + 16 + 16 + 1,
        "layers": [
            {"name": "body.hidden.0", "type": "Linear", "parameters": 128},
            {"name": "body.hidden.2", "type": "Linear", "parameters": 528},
            {"name": "body.head", "type": "Linear", "parameters": 17},
        ],
    }
    json.dumps(summary(net))


def test_an_untrained_forecast_head_repeats_the_last_value() -> None:
    net = network(model(type="rnn"), signature(FORECAST, series=SERIES)).eval()
    nn.init.zeros_(net.body.head.weight)
    batch = example_batch(signature(FORECAST, series=SERIES), size=3, seed=0)
    torch.testing.assert_close(net.predict(batch), batch["series"][:, -1:].expand(3, 6, 2))


def test_a_channel_that_never_varied_does_not_divide_by_zero() -> None:
    net = network(SMALL_MLP, signature(NUMBER, row=VECTOR))
    x = net.inputs({"row": torch.tensor([[40.0, 4e4, 1.0], [52.0, 3e4, 1.5]])})
    torch.testing.assert_close(x, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.5]]))


def test_pictures_are_standardized_per_channel() -> None:
    net = network(SMALL_CNN, signature(CLASSES, picture=IMAGE))
    picture = example_batch(signature(CLASSES, picture=IMAGE), size=2, seed=0)["picture"]
    x = net.inputs({"picture": picture})
    torch.testing.assert_close(x[:, 2], (picture[:, 2].float() - 114) / 66)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32))
def test_an_fm_equals_the_double_sum_over_pairs(
    num_categories: int, num_numbers: int, factors: int, num_classes: int, seed: int
) -> None:
    features: dict[str, Feature] = {f"c{i}": COLOUR for i in range(num_categories)}
    if num_numbers or not num_categories:
        names = tuple(f"x{i}" for i in range(max(1, num_numbers)))
        features["row"] = VectorFeature(names=names, mean=(0.0,) * len(names), std=(1.0,) * len(names))
    data = signature(ClassTarget(classes=tuple("abc"[:num_classes])), **features)
    net = network(model(type="fm", factors=factors, initial_std=1.0), data, preset="traditional", seed=seed)
    batch = example_batch(data, size=4, seed=seed)
    torch.testing.assert_close(net(batch), naive_fm(net, batch), rtol=1e-4, atol=1e-4)


def naive_fm(net: Network, batch: dict[str, Tensor]) -> Tensor:
    """Equation 1 of Rendle 2010, as written there, for each sample and output."""
    factors = net.body.factors.weight.view(-1, net.body.num_outputs, net.body.num_factors)
    outputs = []
    for sample in range(len(next(iter(batch.values())))):
        row, active = 0, []
        for value in batch.values():
            if value.ndim == 1:
                active.append((row + int(value[sample]), torch.tensor(1.0)))
                row += COLOUR.size
            else:
                active += [(row + i, x) for i, x in enumerate(value[sample])]
        y = net.body.bias_O + sum(net.body.weights.weight[i] * x for i, x in active)
        for (i, x_i), (j, x_j) in itertools.combinations(active, 2):
            y = y + (factors[i] * factors[j]).sum(-1) * x_i * x_j
        outputs.append(y)
    return torch.stack(outputs)


def test_an_fm_treats_an_unseen_user_like_nobody() -> None:
    data = signature(NUMBER, user=USER, colour=COLOUR)
    net = train_mode(network(model(type="fm", factors=4), data, regularization="penalty"))
    batch = {"user": torch.arange(1, 101), "colour": torch.arange(100) % 3 + 1}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss(net, batch, 1 + 4 * torch.rand(100)).backward()
        optimizer.step()
    stranger = {"user": torch.tensor([0]), "colour": torch.tensor([2])}
    index_BF, _ = net.inputs(stranger)
    colour_row, user_row = index_BF[0]  # fields are in the order of their names
    torch.testing.assert_close(net(stranger), net.body.bias_O + net.body.weights.weight[colour_row])
    assert not net.body.factors.weight[user_row].any()


def test_an_fm_learns_about_unseen_values_when_training_shows_some() -> None:
    data = signature(NUMBER, user=USER, colour=COLOUR)
    net = network(model(type="fm", factors=4), data, regularization="penalty")
    batch = {"user": torch.tensor([0]), "colour": torch.tensor([1])}
    loss(net, batch, torch.tensor([5.0])).backward()
    nobody = COLOUR.size
    assert net.body.weights.weight.grad[nobody].any() and net.body.factors.weight.grad[nobody].any()


@pytest.mark.parametrize("regularization", ["penalty", "layers"])
def test_an_fms_pairs_start_with_the_stated_variance(regularization: str) -> None:
    many = CategoricalFeature(vocabulary=tuple(str(i) for i in range(2000)))
    data = signature(NUMBER, a=many, b=many, c=many)
    net = network(model(type="fm", factors=16), data, regularization=regularization)
    net.train().body.dropout.probability = 0.0
    outputs = net({name: torch.randint(1, 2001, (4000,)) for name in "abc"})
    assert outputs.var().item() == pytest.approx(PAIRWISE_VARIANCE, rel=0.2)


def test_a_dense_net_reads_an_unseen_category_as_no_category() -> None:
    net = network(SMALL_MLP, signature(NUMBER, colour=COLOUR))
    x = net.inputs({"colour": torch.tensor([0, 1, 3])})
    assert x.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_example_batches_are_reproducible() -> None:
    data = signature(NUMBER, picture=IMAGE, row=VECTOR, user=USER)
    first, again = example_batch(data, size=3, seed=4), example_batch(data, size=3, seed=4)
    assert first["picture"].dtype == torch.uint8 and first["user"].dtype == torch.int64
    assert all(torch.equal(first[name], again[name]) for name in data.features)
