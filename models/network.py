"""A network: features in, outputs of the task out. Built from a configuration, a signature and a seed alone."""

# B = batch

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.config import ModelConfig, ResolvedTechniques, has_activation
from models.features import (
    LENGTH,
    UNKNOWN,
    VALUE,
    AudioFeature,
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    ForecastTarget,
    ImageFeature,
    NumberTarget,
    SeriesFeature,
    Signature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from models.inputs import Batch, FieldInput, FlatInput, ImageInput, LastStep, forecast_parts, sequence_input
from models.networks.cnn import CNN
from models.networks.fm import FM
from models.networks.mlp import MLP
from models.networks.rnn import RNN
from models.task import Task, task_of
from models.techniques import Dropout, Initializer, set_random_state


class Parts(NamedTuple):
    """What a kind of model consists of."""

    inputs: Callable[[Signature], nn.Module]
    body: Callable[..., MLP | CNN | RNN | FM]
    """Called with the configuration, the techniques, the inputs, and ``num_outputs``."""


MODELS: Mapping[str, Parts] = {
    "mlp": Parts(FlatInput, MLP),
    "cnn": Parts(ImageInput, CNN),
    "rnn": Parts(sequence_input, RNN),
    "fm": Parts(FieldInput, FM),
}


class Network(nn.Module):
    """Inputs, a body and a task.

    Shape:
        a batch of raw features (see `models/features.py`) -> logits_BK, numbers_B or y_BTC, standardized
    """

    def __init__(self, inputs: nn.Module, body: nn.Module, task: Task, *, origin: nn.Module | None) -> None:
        super().__init__()
        self.inputs, self.body, self.task = inputs, body, task
        self.origin = origin
        """What outputs are relative to; only forecasts have one."""
        self._dropouts = tuple(module for module in self.modules() if isinstance(module, Dropout))
        self._norms = tuple(module for module in self.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d))

    def begin_batch(self, size: int, **counters: int) -> None:
        """Prepare the next forward pass of training.

        Args:
            size: samples in the batch. One sample has no variance: batch normalization uses its running statistics.
            counters: what the dropout masks depend on, see `set_random_state`.
        """
        if self._dropouts:
            set_random_state(self._dropouts, device=next(self.parameters()).device, **counters)
        for norm in self._norms:
            if norm.training != (size > 1):
                norm.train(size > 1)

    def forward(self, batch: Batch) -> Tensor:
        """Return the outputs that `task` understands: logits, or standardized numbers."""
        outputs = self.task.arrange(self.body(self.inputs(batch)))
        return outputs if self.origin is None else outputs + self.origin(batch)

    def predict(self, batch: Batch) -> Tensor:
        """Return answers: probabilities, or numbers in their own units. Call `eval()` first."""
        return self.task.decode(self(batch))


def build(model: ModelConfig, techniques: ResolvedTechniques, signature: Signature, *, seed: int) -> Network:
    """Build a network with its initial weights, a pure function of the arguments.

    Raises:
        ValueError: if the model cannot read the features, answer the target or use the activation.
    """
    _check_activation(model, techniques)
    parts = MODELS[model.type]
    task = task_of(signature)
    inputs = parts.inputs(signature)
    with torch.device("meta"):  # PyTorch's own initialization would draw from the global generator
        body = parts.body(model, techniques, inputs, num_outputs=task.num_outputs)
    body.to_empty(device="cpu")
    body.initialize(Initializer(techniques, initial_std=model.initial_std, seed=seed))
    return Network(inputs, body, task, origin=_origin(signature))


def weight_bytes(model: ModelConfig, techniques: ResolvedTechniques, signature: Signature) -> int:
    """Return the bytes of the tensors that a network's state has, without memory for any of them.

    Raises:
        ValueError: as `build` does.
    """
    _check_activation(model, techniques)
    parts = MODELS[model.type]
    with torch.device("meta"):
        inputs = parts.inputs(signature)
        body = parts.body(model, techniques, inputs, num_outputs=task_of(signature).num_outputs)
    state = [*inputs.state_dict().values(), *body.state_dict().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def _check_activation(model: ModelConfig, techniques: ResolvedTechniques) -> None:
    if has_activation(model) != (techniques.activation is not None):
        rule = "be chosen" if has_activation(model) else "be None"
        raise ValueError(
            f"techniques.activation must {rule} for model.type {model.type}, got {techniques.activation!r}. "
            "Use models.config.resolve_techniques"
        )


def _origin(signature: Signature) -> LastStep | None:
    if not isinstance(signature.target, ForecastTarget):
        return None
    name, series, _ = forecast_parts(signature)
    return LastStep(name, series)


def example_batch(signature: Signature, *, size: int, seed: int) -> dict[str, Tensor]:
    """Return ``size`` random samples with plausible raw values of every feature, without the target.

    Of text, audio and sparse rows they are short ones.
    """
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Tensor] = {}
    for name, feature in signature.features.items():
        match feature:
            case ImageFeature():
                shape = (size, *feature.shape)
                batch[name] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            case CategoricalFeature():
                batch[name] = torch.randint(0, feature.size, (size,), generator=generator)
            case VectorFeature():
                batch[name] = _normal((size, len(feature.names)), feature, generator)
            case SeriesFeature():
                lookback = forecast_parts(signature)[2].lookback
                batch[name] = _normal((size, lookback, len(feature.channels)), feature, generator)
            case TextFeature() | AudioFeature() | SparseFeature():
                batch |= _example_ragged(name, feature, size=size, generator=generator)
    return batch


def _example_ragged(
    name: str, feature: TextFeature | AudioFeature | SparseFeature, *, size: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return short rows: a version's golden request holds them as JSON."""
    lengths = torch.randint(1, _example_length(feature) + 1, (size,), generator=generator).tolist()
    rows: list[Tensor] = []
    values: list[Tensor] = []
    for length in lengths:
        match feature:
            case TextFeature():
                rows.append(torch.randint(UNKNOWN, feature.size, (length,), generator=generator))
            case AudioFeature():  # 8 bits: a few digits in JSON
                rows.append(torch.randint(-128, 128, (length,), generator=generator) / 128)
            case SparseFeature():
                rows.append(_distinct(feature.columns, length, generator) + 1)
                values.append(torch.randn(length, generator=generator))
    batch = {name: pad_sequence(rows, batch_first=True), name + LENGTH: torch.tensor(lengths)}
    return batch | ({name + VALUE: pad_sequence(values, batch_first=True)} if values else {})


def _example_length(feature: TextFeature | AudioFeature | SparseFeature) -> int:
    match feature:
        case TextFeature():
            return min(feature.max_tokens, 20)
        case AudioFeature():
            return min(feature.max_samples, max(1, feature.sample_rate // 10))
        case SparseFeature():
            return min(feature.columns, 10)


def _distinct(end: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` different numbers below ``end`` in ascending order, one from each of ``count`` equal parts."""
    edges = torch.arange(count + 1) * end // count
    return edges[:-1] + (torch.rand(count, generator=generator, dtype=torch.float64) * edges.diff()).long()


def example_target(signature: Signature, *, size: int, seed: int) -> Tensor:
    """Return ``size`` random targets with plausible raw values."""
    generator = torch.Generator().manual_seed(seed)
    match signature.target:
        case ClassTarget() as target:
            return torch.randint(0, len(target.classes), (size,), generator=generator)
        case NumberTarget() as target:
            uniform = torch.rand(size, generator=generator)
            return target.minimum + uniform * (target.maximum - target.minimum)
        case ForecastTarget() as target:
            _, series, _ = forecast_parts(signature)
            return _normal((size, target.horizon, len(series.channels)), series, generator)
        case BoxesTarget():
            raise AssertionError("task_of refuses boxes")


def _normal(shape: tuple[int, ...], feature: VectorFeature | SeriesFeature, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    return torch.tensor(feature.mean) + torch.tensor(feature.std) * noise


def summary(network: Network) -> dict[str, Any]:
    """Return the number of ``parameters``, and the ``layers`` that hold them: name, type, parameters."""
    layers = []
    for name, module in network.body.named_modules(prefix="body"):
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        if parameters:
            layers.append({"name": name, "type": type(module).__name__, "parameters": parameters})
    return {"parameters": sum(layer["parameters"] for layer in layers), "layers": layers}
