"""From a batch of raw values to what a network's body reads: chosen, checked and normalized features.

The statistics come from the signature and are not part of the saved weights, so they exist once.
"""

# B = batch, C = channels, H = height, W = width, T = time steps, D = numbers, V = values, F = categorical fields

import math
from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.features import (
    CategoricalFeature,
    ForecastTarget,
    ImageFeature,
    SeriesFeature,
    Signature,
    VectorFeature,
)

MAX_ONE_HOT = 64  # values of a category that a dense layer may read; for more, a factor table is the right tool

Batch = Mapping[str, Tensor]


class Standardized(nn.Module):
    """One feature as ``(x - mean) / std`` in float32; a channel that never varied (std 0) is only centred."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, feature: ImageFeature | VectorFeature | SeriesFeature) -> None:
        super().__init__()
        self.name = name
        shape = (-1, 1, 1) if isinstance(feature, ImageFeature) else (-1,)
        std = [value or 1.0 for value in feature.std]
        self.register_buffer("mean", torch.tensor(feature.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Return the feature in its own shape and memory format."""
        return (batch[self.name].float() - self.mean) / self.std


class OneHot(nn.Module):
    """One categorical feature as an indicator for each known value; all are 0 for a value never seen."""

    def __init__(self, name: str, feature: CategoricalFeature) -> None:
        super().__init__()
        if feature.size > MAX_ONE_HOT:
            raise ValueError(
                f"feature {name!r} must have at most {MAX_ONE_HOT} values for model.type mlp, got {feature.size}. "
                "Use model.type fm, which learns factors for each value"
            )
        self.name = name
        self.size = feature.size

    def forward(self, batch: Batch) -> Tensor:
        """Return x_BV, V = the vocabulary's length."""
        return F.one_hot(batch[self.name], self.size)[:, 1:].float()


class ImageInput(nn.Module):
    """The CNN's input: one picture."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        _refuse_forecast(signature, model="cnn")
        if len(signature.features) != 1:
            _refuse_features(signature, rule="be exactly one image", model="cnn")
        [(name, feature)] = signature.features.items()
        if not isinstance(feature, ImageFeature):
            _refuse_features(signature, rule="be exactly one image", model="cnn")
        self.standardized = Standardized(name, feature)
        self.shape = feature.shape

    def forward(self, batch: Batch) -> Tensor:
        """Return x_BCHW."""
        x_BCHW: Tensor = self.standardized(batch)
        return x_BCHW


class Window(nn.Module):
    """One window of a series, standardized and relative to its last step (see `LastStep`)."""

    def __init__(self, name: str, feature: SeriesFeature) -> None:
        super().__init__()
        self.standardized = Standardized(name, feature)

    def forward(self, batch: Batch) -> Tensor:
        """Return x_BTC."""
        x_BTC: Tensor = self.standardized(batch)
        return x_BTC - x_BTC[:, -1:]


class LastStep(nn.Module):
    """The last known value of each channel, standardized: what a forecast is relative to.

    Reading and answering differences from it takes the drift of the level out of the problem (NLinear, Zeng et al.
    2023; SegRNN, Lin et al. 2023).
    """

    def __init__(self, name: str, feature: SeriesFeature) -> None:
        super().__init__()
        self.standardized = Standardized(name, feature)

    def forward(self, batch: Batch) -> Tensor:
        """Return last_B1C."""
        x_BTC: Tensor = self.standardized(batch)
        return x_BTC[:, -1:]


class WindowInput(nn.Module):
    """The RNN's input: one window of a series."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        name, feature, target = forecast_parts(signature)
        if len(signature.features) != 1:
            _refuse_features(signature, rule="be exactly one series", model="rnn")
        self.window = Window(name, feature)
        self.lookback = target.lookback
        self.horizon = target.horizon
        self.num_channels = len(feature.channels)

    def forward(self, batch: Batch) -> Tensor:
        """Return x_BTC."""
        x_BTC: Tensor = self.window(batch)
        return x_BTC


class FlatInput(nn.Module):
    """The MLP's input: all features as one row of numbers."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        if not signature.features:
            _refuse_features(signature, rule="be at least one", model="mlp")
        if isinstance(signature.target, ForecastTarget):
            forecast_parts(signature)  # refuses a forecast without a series
        self.readers = nn.ModuleList()
        self.size = 0
        for name, feature in signature.features.items():
            match feature:
                case ImageFeature():
                    self._add(Standardized(name, feature), size=math.prod(feature.shape))
                case VectorFeature():
                    self._add(Standardized(name, feature), size=len(feature.names))
                case CategoricalFeature():
                    self._add(OneHot(name, feature), size=len(feature.vocabulary))
                case SeriesFeature():
                    _, _, target = forecast_parts(signature)
                    self._add(Window(name, feature), size=target.lookback * len(feature.channels))

    def _add(self, reader: nn.Module, *, size: int) -> None:
        self.readers.append(reader)
        self.size += size

    def forward(self, batch: Batch) -> Tensor:
        """Return x_BD."""
        return torch.cat([reader(batch).flatten(1) for reader in self.readers], dim=1)


class FieldInput(nn.Module):
    """The FM's input: a field for each category and each number, with rows in one table.

    The rows of all categories come first, each feature's own one after another, then a row for each number.
    """

    offset_F: Tensor

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        categories = {n: f for n, f in signature.features.items() if isinstance(f, CategoricalFeature)}
        vectors = {n: f for n, f in signature.features.items() if isinstance(f, VectorFeature)}
        if len(categories) + len(vectors) < max(1, len(signature.features)):
            _refuse_features(signature, rule="be categorical or vectors", model="fm")
        _refuse_forecast(signature, model="fm")
        sizes = [feature.size for feature in categories.values()]
        self.names = tuple(categories)
        self.vectors = nn.ModuleList([Standardized(name, feature) for name, feature in vectors.items()])
        self.unseen_rows = tuple(sum(sizes[:i]) for i in range(len(sizes)))
        self.num_category_rows = sum(sizes)
        self.num_numbers = sum(len(feature.names) for feature in vectors.values())
        offset_F = torch.tensor(self.unseen_rows, dtype=torch.int64)
        self.register_buffer("offset_F", offset_F, persistent=False)

    @property
    def num_fields(self) -> int:
        """Categories and numbers together."""
        return len(self.names) + self.num_numbers

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return self.num_category_rows + self.num_numbers

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return index_BF, the table's row for each category, and x_BD, the numbers."""
        rows = next(iter(batch.values())).shape[0]
        indices = [batch[name] for name in self.names]
        numbers = [vector(batch) for vector in self.vectors]
        index_BF = torch.stack(indices, dim=1) + self.offset_F if indices else self.offset_F.expand(rows, 0)
        x_BD = torch.cat(numbers, dim=1) if numbers else self.offset_F.new_zeros(rows, 0, dtype=torch.float32)
        return index_BF, x_BD


def forecast_parts(signature: Signature) -> tuple[str, SeriesFeature, ForecastTarget]:
    """Return the name of the series, the series, and the target that forecasts it.

    Raises:
        ValueError: if there is not exactly one series, or the target does not forecast it.
    """
    series = [(n, f) for n, f in signature.features.items() if isinstance(f, SeriesFeature)]
    if len(series) != 1:
        raise ValueError(
            f"features must have exactly one series for a forecast, got {_described(signature)}. "
            "Put all channels into one series, or use a model.type that reads the features"
        )
    if not isinstance(signature.target, ForecastTarget):
        raise ValueError(
            f"target must be a forecast for features with a series, got {signature.target.kind}. "
            "Use a dataset whose target is its series"
        )
    return *series[0], signature.target


def _refuse_forecast(signature: Signature, *, model: str) -> None:
    if isinstance(signature.target, ForecastTarget):
        raise ValueError(
            f"target must be a class or a number for model.type {model}, got forecast. Use model.type rnn or mlp"
        )


_READERS = {
    "image": "cnn or mlp",
    "vector": "mlp or fm",
    "categorical": "fm or mlp",
    "series": "rnn or mlp",
}


def _refuse_features(signature: Signature, *, rule: str, model: str) -> NoReturn:
    kinds = {feature.kind for feature in signature.features.values()}
    cures = "; ".join(f"{kind}: {_READERS[kind]}" for kind in sorted(kinds))
    raise ValueError(
        f"features must {rule} for model.type {model}, got {_described(signature)}. "
        f"Use a model.type that reads them ({cures or 'mlp reads all kinds'})"
    )


def _described(signature: Signature) -> str:
    return ", ".join(f"{feature.kind} {name!r}" for name, feature in signature.features.items()) or "none"
