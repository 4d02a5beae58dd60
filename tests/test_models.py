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
    PADDING,
    UNKNOWN,
    AudioFeature,
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    Feature,
    ForecastTarget,
    ImageFeature,
    NumberTarget,
    SeriesFeature,
    Signature,
    SparseFeature,
    Target,
    TextFeature,
    VectorFeature,
)
from models.network import MODELS, Network, build, example_batch, example_target, summary
from models.networks.fm import PAIRWISE_VARIANCE

IMAGE = ImageFeature(shape=(3, 32, 32), mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 66.0))
DIGIT = ImageFeature(shape=(1, 8, 8), mean=(78.0,), std=(96.0,))
VECTOR = VectorFeature(names=("age", "income", "always one"), mean=(40.0, 3e4, 1.0), std=(12.0, 1e4, 0.0))
COLOUR = CategoricalFeature(vocabulary=("red", "green", "blue"))
USER = CategoricalFeature(vocabulary=tuple(f"u{i}" for i in range(100)))
SERIES = SeriesFeature(channels=("load", "oil"), mean=(10.0, -3.0), std=(4.0, 2.0))
TEXT = TextFeature(vocabulary=("good", "bad", "film", ",", "not"), max_tokens=30)
SOUND = AudioFeature(sample_rate=8000, max_samples=16_000)
SPARSE = SparseFeature(columns=40)
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
    "rnn-text-class": (model(type="rnn", hidden_size=16), signature(CLASSES, review=TEXT)),
    "rnn-text-number": (model(type="rnn", cell="lstm", hidden_size=16, layers=2), signature(NUMBER, review=TEXT)),
    "rnn-sound-class": (model(type="rnn", hidden_size=16), signature(CLASSES, sound=SOUND)),
    "rnn-sound-segments": (model(type="rnn", segment=3, hidden_size=16), signature(NUMBER, sound=SOUND)),
    "fm-sparse-class": (FM, signature(CLASSES, row=SPARSE)),
    "fm-sparse-with-others": (FM, signature(NUMBER, user=USER, row=SPARSE, other=SPARSE, vector=VECTOR)),
    "fm-class": (FM, signature(CLASSES, user=USER, colour=COLOUR, row=VECTOR)),
    "fm-number": (FM, signature(NUMBER, user=USER, colour=COLOUR)),
    "fm-numbers-only": (FM, signature(NUMBER, row=VECTOR)),
}
PRESETS = ("traditional", "deep")


def every_case(test: Callable[..., None]) -> Callable[..., None]:
    params = [pytest.param(*CASES[name], p, id=f"{name}-{p}") for name, p in itertools.product(CASES, PRESETS)]
    return pytest.mark.parametrize(("config", "data", "preset"), params)(test)


def train_mode(net: Network, *, step: int = 0) -> Network:
    net.train()
    net.begin_batch(2, seed=0, epoch=0, step=step, logical_worker=0)
    return net


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
    "rnn-text-class",
    "rnn-text-number",
    "rnn-sound-class",
    "rnn-sound-segments",
    "fm-sparse-class",
    "fm-sparse-with-others",
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
        (FM, signature(CLASSES, picture=IMAGE, user=USER), "sparse or vectors for model.type fm, got image 'picture'"),
        (FM, signature(CLASSES), "must be categorical, sparse or vectors .* fm, got none. Use a dataset that has some"),
        (FM, signature(FORECAST, series=SERIES), "must be categorical, sparse or vectors .* got series 'series'"),
        (FM, signature(CLASSES, review=TEXT), r"got text 'review'. Use a model.type that reads them \(text: rnn\)"),
        (SMALL_MLP, signature(CLASSES, review=TEXT), r"for model.type mlp, got text 'review'. .* \(text: rnn\)"),
        (SMALL_MLP, signature(CLASSES, sound=SOUND), r"or a series .* got audio 'sound'. .* \(audio: rnn\)"),
        (SMALL_MLP, signature(CLASSES, row=SPARSE), r"got sparse 'row'. .* \(sparse: fm\)"),
        (SMALL_CNN, signature(CLASSES, sound=SOUND), "exactly one image for model.type cnn, got audio 'sound'"),
        (model(type="rnn"), signature(CLASSES, row=VECTOR), "exactly one text, audio or series .* got vector 'row'"),
        (model(type="rnn"), signature(CLASSES, a=TEXT, b=TEXT), "exactly one text, .* got text 'a', text 'b'"),
        (model(type="rnn"), signature(CLASSES), "exactly one text, audio or series for model.type rnn, got none"),
        (model(type="rnn"), signature(FORECAST, review=TEXT), "exactly one series for a forecast, got text 'review'"),
        (model(type="rnn", segment=2), signature(CLASSES, review=TEXT), "model.segment must be 1 for a text, .* got 2"),
        (SMALL_CNN, signature(BoxesTarget(classes=("cell",)), picture=IMAGE), "target must be .*, got boxes. No model"),
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
@given(
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_an_fm_equals_the_double_sum_over_pairs(
    num_categories: int, num_sparse: int, num_numbers: int, factors: int, num_classes: int, seed: int
) -> None:
    features: dict[str, Feature] = {f"c{i}": COLOUR for i in range(num_categories)}
    features |= {f"r{i}": SPARSE for i in range(num_sparse)}
    if num_numbers or not features:
        names = tuple(f"x{i}" for i in range(max(1, num_numbers)))
        features["vector"] = VectorFeature(names=names, mean=(0.0,) * len(names), std=(1.0,) * len(names))
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
        for name in sorted(batch, key=lambda name: ("crv".index(name[0]), name)):
            value = batch[name]
            if name.startswith("c"):
                active.append((row + int(value[sample]), torch.tensor(1.0)))
                row += COLOUR.size
            elif name in ("r0", "r1"):
                pairs = zip(value[sample], batch[f"{name}.value"][sample], strict=True)
                active += [(row + int(i) - 1, x) for i, x in list(pairs)[: int(batch[f"{name}.length"][sample])]]
                row += SPARSE.columns
            elif name == "vector":
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
    colour_row, user_row = net.inputs(stranger).index_BF[0]  # fields are in the order of their names
    torch.testing.assert_close(net(stranger), net.body.bias_O + net.body.weights.weight[colour_row])
    assert not net.body.factors.weight[user_row].any()


def test_an_fm_learns_about_unseen_values_when_training_shows_some() -> None:
    data = signature(NUMBER, user=USER, colour=COLOUR)
    net = network(model(type="fm", factors=4), data, regularization="penalty")
    batch = {"user": torch.tensor([0]), "colour": torch.tensor([1])}
    loss(net, batch, torch.tensor([5.0])).backward()
    nobody = COLOUR.size
    assert net.body.weights.weight.grad[nobody].any() and net.body.factors.weight.grad[nobody].any()


def test_an_fm_ignores_the_padding_of_a_sparse_row() -> None:
    data = signature(CLASSES, user=USER, row=SPARSE)
    net = network(model(type="fm", factors=4, initial_std=1.0), data, preset="traditional").eval()
    batch = example_batch(data, size=6, seed=1)
    expected = net(batch)
    wider = batch | {name: nn.functional.pad(batch[name], (0, 5)) for name in ("row", "row.value")}
    torch.testing.assert_close(net(wider), expected, rtol=1e-6, atol=1e-6)
    empty = {"user": torch.tensor([3]), "row": torch.zeros(1, 0).long(), "row.value": torch.zeros(1, 0)}
    torch.testing.assert_close(net(empty), net.body.bias_O + net.body.weights.weight[3:4])


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


RAGGED = [name for name, (_, data) in CASES.items() if {f.kind for f in data.features.values()} & {"text", "audio"}]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", RAGGED)
def test_a_text_or_sound_is_answered_the_same_whatever_it_is_batched_with(name: str, preset: str) -> None:
    config, data = CASES[name]
    net = network(config, data, preset=preset).eval()
    (key,) = data.features
    batch = example_batch(data, size=6, seed=3)
    together = net(batch)
    longer = {**batch, key: nn.functional.pad(batch[key], (0, 777))}
    torch.testing.assert_close(net(longer), together, rtol=1e-6, atol=1e-6)
    for i, length in enumerate(batch[f"{key}.length"].tolist()):
        alone = net({key: batch[key][i : i + 1, :length], f"{key}.length": torch.tensor([length])})
        torch.testing.assert_close(alone[0], together[i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RAGGED)
def test_an_empty_text_or_sound_is_answered_alone_and_among_others(name: str) -> None:
    config, data = CASES[name]
    net = network(config, data).eval()
    (key,) = data.features
    batch = example_batch(data, size=2, seed=3)
    nothing = torch.zeros_like(batch[key][:1])
    among = {key: torch.cat([nothing, batch[key]]), f"{key}.length": torch.tensor([0, *batch[f"{key}.length"]])}
    alone = net({key: nothing[:, :0], f"{key}.length": torch.tensor([0])})
    assert alone.isfinite().all()
    torch.testing.assert_close(net(among)[0], alone[0], rtol=1e-6, atol=1e-6)
    train_mode(net)(among).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_the_order_of_words_matters_and_unknown_words_say_nothing_at_first() -> None:
    net = network(model(type="rnn", hidden_size=16), signature(CLASSES, review=TEXT)).eval()
    tokens = torch.tensor([[6, 2, 4], [2, 6, 4]])
    first, second = net({"review": tokens, "review.length": torch.tensor([3, 3])})
    assert not torch.allclose(first, second, atol=1e-4)
    assert not net.body.embedding.weight[[PADDING, UNKNOWN]].any()


def test_a_sounds_loudness_does_not_matter_but_its_pitch_does() -> None:
    net = network(model(type="rnn"), signature(CLASSES, sound=SOUND)).eval()
    noise = 1e-2 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    seconds = torch.arange(4000) / 8000
    chirp, other = ((2 * torch.pi * f * seconds.square()).sin() + noise for f in (400, 2000))
    frames = net.inputs({"sound": torch.stack([chirp, 0.1 * chirp, other]), "sound.length": torch.tensor([4000] * 3)})
    assert frames.length_B.tolist() == [50, 50, 50] and frames.x.shape == (3, 50, 40)
    torch.testing.assert_close(frames.x.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.x.std((1, 2), correction=0), torch.ones(3), atol=0.01, rtol=0)
    quieter, different = ((frames.x[i] - frames.x[0]).abs().mean().item() for i in (1, 2))
    assert quieter < 0.1 * different


@pytest.mark.parametrize("sample_rate", [1000, 8000, 16_000, 22_050, 44_100])
def test_a_tone_is_loudest_in_the_band_of_its_pitch(sample_rate: int) -> None:
    sound = AudioFeature(sample_rate=sample_rate, max_samples=sample_rate)
    inputs = network(model(type="rnn"), signature(CLASSES, sound=sound)).inputs
    peaks = []
    for pitch in (60, 150, 300, 450):
        tone = (2 * torch.pi * pitch * torch.arange(sample_rate) / sample_rate).sin()
        peaks.append(int(inputs._log_mel(tone[None])[0, 40].argmax()))
    assert peaks == sorted(set(peaks))
    top = 2595 * torch.tensor([1 + 450 / 700, 1 + sample_rate / 1400]).log10()
    assert peaks[-1] == pytest.approx(float(top[0] / top[1] * 41) - 1, abs=1)


def test_a_picture_is_read_the_same_however_it_is_stored() -> None:
    batch = example_batch(signature(CLASSES, picture=IMAGE), size=2, seed=0)
    stored = IMAGE.model_copy(update={"encoding": "file"})
    raw, file = (network(SMALL_CNN, signature(CLASSES, picture=feature)).eval() for feature in (IMAGE, stored))
    assert torch.equal(raw(batch), file(batch))


def test_example_batches_are_what_a_reader_delivers() -> None:
    data = signature(NUMBER, review=TEXT, sound=SOUND, row=SparseFeature(columns=4), user=USER)
    batch = example_batch(data, size=50, seed=4)
    for name, pad in (("review", 0), ("sound", 0), ("row", 0), ("row.value", 0)):
        length = batch[f"{name.removesuffix('.value')}.length"]
        assert length.dtype == torch.int64 and length.min() >= 1 and length.max() == batch[name].shape[1]
        assert all((sample[n:] == pad).all() for sample, n in zip(batch[name], length.tolist(), strict=True))
    assert (batch["review"].dtype, batch["sound"].dtype) == (torch.int64, torch.float32)
    assert (batch["row"].dtype, batch["row.value"].dtype) == (torch.int64, torch.float32)
    assert set(batch["review"].unique().tolist()) == set(range(TEXT.size)) and batch["sound"].abs().max() <= 1
    rows = [sample[:n].tolist() for sample, n in zip(batch["row"], batch["row.length"].tolist(), strict=True)]
    assert all(row == sorted(set(row)) and 1 <= row[0] <= row[-1] <= 4 for row in rows)


def test_example_batches_are_reproducible() -> None:
    data = signature(NUMBER, picture=IMAGE, row=VECTOR, user=USER)
    first, again = example_batch(data, size=3, seed=4), example_batch(data, size=3, seed=4)
    assert first["picture"].dtype == torch.uint8 and first["user"].dtype == torch.int64
    assert all(torch.equal(first[name], again[name]) for name in data.features)
