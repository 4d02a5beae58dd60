"""From a batch of raw values to what a network's body reads: chosen, checked and normalized features.

The statistics come from the signature and are not part of the saved weights, so they exist once.
"""

# B = batch, C = channels, H = height, W = width, T = time steps, D = numbers, V = values, F = fields with a row each;
# of sounds: T = samples, S = frames, W = samples of a frame, K = frequencies, M = mel bands

import math
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.features import (
    LENGTH,
    VALUE,
    AudioFeature,
    CategoricalFeature,
    ForecastTarget,
    ImageFeature,
    SeriesFeature,
    Signature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)

MAX_ONE_HOT = 64  # values of a category that a dense layer may read; for more, a factor table is the right tool
FRAME_S, HOP_S = 0.025, 0.010  # of a sound's frames; usual in speech recognition, as is the number of mel bands
MEL_BANDS = 40
MEL_FLOOR = 1e-6  # added to a band's power, so that silence has a logarithm; a full-scale tone has 1e3
SPARSE_FIELDS = 32  # columns of a sparse row that are not 0, as a guess for the scale of initial weights

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


class Steps(NamedTuple):
    """What the RNN reads, one step after another."""

    x: Tensor
    """x_BTC, or tokens_BT; at least one step."""
    length_B: Tensor | None
    """How many steps of each sample are real, the others being padding; ``None`` if all are."""


class WindowInput(nn.Module):
    """The RNN's input for a forecast: one window of a series."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        name, feature, target = forecast_parts(signature)
        if len(signature.features) != 1:
            _refuse_features(signature, rule="be exactly one series", model="rnn")
        self.window = Window(name, feature)
        self.lookback = target.lookback
        self.num_channels = len(feature.channels)

    def forward(self, batch: Batch) -> Steps:
        """Return x_BTC."""
        return Steps(self.window(batch), None)


class TokenInput(nn.Module):
    """The RNN's input for a text: its tokens."""

    def __init__(self, name: str, feature: TextFeature) -> None:
        super().__init__()
        self.name = name
        self.num_tokens = feature.size

    def forward(self, batch: Batch) -> Steps:
        """Return tokens_BT."""
        tokens_BT = batch[self.name]
        missing = max(0, 1 - tokens_BT.shape[1])  # 1 if all texts of the batch are empty
        return Steps(F.pad(tokens_BT, (0, missing)), batch[self.name + LENGTH])


class FrameInput(nn.Module):
    """The RNN's input for a sound: the logarithm of its power in mel bands, frame by frame.

    Every sound is standardized by its own mean and deviation over all frames and bands, so that its loudness does not
    matter. (Doing so in each band by itself, which hides the microphone too, recognized fewer spoken digits: 97.3 %
    against 99.7 %.)
    """

    window_W: Tensor
    mel_KM: Tensor

    def __init__(self, name: str, feature: AudioFeature) -> None:
        super().__init__()
        self.name = name
        self.num_channels = MEL_BANDS
        self.frame_size = max(1, round(FRAME_S * feature.sample_rate))
        self.hop = max(1, round(HOP_S * feature.sample_rate))
        self.fft_size = 2 ** math.ceil(math.log2(self.frame_size))
        window_W = torch.hamming_window(self.frame_size, periodic=False)
        self.register_buffer("window_W", window_W, persistent=False)
        self.register_buffer("mel_KM", mel_filters(feature.sample_rate, self.fft_size // 2 + 1), persistent=False)

    def forward(self, batch: Batch) -> Steps:
        """Return x_BSM; a frame is real if it begins within the sound, which is followed by silence."""
        x_BT, length_B = batch[self.name], (batch[self.name + LENGTH] + self.hop - 1) // self.hop
        with torch.autocast(x_BT.device.type, enabled=False):  # sums of powers need more than 8 bits
            x_BSM = self._log_mel(x_BT)
            real_BS1 = (torch.arange(x_BSM.shape[1], device=x_BT.device) < length_B[:, None]).unsqueeze(2)
            return Steps(_standardize(x_BSM, real_BS1), length_B)

    def _log_mel(self, x_BT: Tensor) -> Tensor:
        num_frames = max(1, -(-x_BT.shape[1] // self.hop))
        silence = (num_frames - 1) * self.hop + self.frame_size - x_BT.shape[1]
        frames_BSW = F.pad(x_BT, (0, silence)).unfold(1, self.frame_size, self.hop)
        spectrum_BSK = torch.fft.rfft(frames_BSW * self.window_W, n=self.fft_size)
        power_BSK = spectrum_BSK.real.square() + spectrum_BSK.imag.square()
        log_BSM: Tensor = (power_BSK @ self.mel_KM + MEL_FLOOR).log()
        return log_BSM


def mel_filters(sample_rate: int, num_frequencies: int) -> Tensor:
    """Return mel_KM: triangles of equal width on the mel scale, each from its left neighbour's peak to its right's."""
    hertz_K = torch.linspace(0, sample_rate / 2, num_frequencies, dtype=torch.float64)
    mel_K = 2595 * (1 + hertz_K / 700).log10()  # O'Shaughnessy 1987
    position_K1 = (mel_K / mel_K[-1] * (MEL_BANDS + 1)).unsqueeze(1)
    peak_M = torch.arange(1, MEL_BANDS + 1)
    return (1 - (position_K1 - peak_M).abs()).clamp(min=0).float()


def _standardize(x_BSM: Tensor, real_BS1: Tensor) -> Tensor:
    """Return each sound's real frames with mean 0 and deviation 1, and 0 for the others."""
    count_B11 = (real_BS1.sum(1, keepdim=True) * x_BSM.shape[2]).clamp(min=1)
    mean_B11 = (x_BSM * real_BS1).sum((1, 2), keepdim=True) / count_B11
    centred_BSM = (x_BSM - mean_B11) * real_BS1
    std_B11 = (centred_BSM.square().sum((1, 2), keepdim=True) / count_B11).sqrt()
    return centred_BSM / (std_B11 + 1e-3)  # silence stays 0


def sequence_input(signature: Signature) -> WindowInput | TokenInput | FrameInput:
    """Return what the RNN reads with: a series for a forecast, or one text or one sound.

    Raises:
        ValueError: if there is anything else, or more.
    """
    if isinstance(signature.target, ForecastTarget) or "series" in {f.kind for f in signature.features.values()}:
        return WindowInput(signature)
    rule = "be exactly one text, audio or series"
    if len(signature.features) != 1:
        _refuse_features(signature, rule=rule, model="rnn")
    [(name, feature)] = signature.features.items()
    if isinstance(feature, TextFeature):
        return TokenInput(name, feature)
    if not isinstance(feature, AudioFeature):
        _refuse_features(signature, rule=rule, model="rnn")
    return FrameInput(name, feature)


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
                case TextFeature() | AudioFeature() | SparseFeature():
                    rule = "be images, vectors, categorical or a series"
                    _refuse_features(signature, rule=rule, model="mlp")

    def _add(self, reader: nn.Module, *, size: int) -> None:
        self.readers.append(reader)
        self.size += size

    def forward(self, batch: Batch) -> Tensor:
        """Return x_BD."""
        parts_BD = [reader(batch).flatten(1) for reader in self.readers]
        return parts_BD[0] if len(parts_BD) == 1 else torch.cat(parts_BD, dim=1)


class Fields(NamedTuple):
    """What the FM reads: rows of its table, and what each is multiplied with."""

    index_BF: Tensor
    """The index of each category's value and of each column of a sparse row."""
    value_BF: Tensor | None
    """1 for a category, 0 for padding; ``None`` if all are 1."""
    x_BD: Tensor
    """For the rows of the numbers, which every sample has."""


class FieldInput(nn.Module):
    """The FM's input: a field for each category, each column of a sparse row and each number, with rows in one table.

    The rows of all categories come first, each feature's own one after another, then those of the sparse columns,
    then a row for each number.
    """

    offset_F: Tensor

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        categories = {n: f for n, f in signature.features.items() if isinstance(f, CategoricalFeature)}
        sparse = {n: f for n, f in signature.features.items() if isinstance(f, SparseFeature)}
        vectors = {n: f for n, f in signature.features.items() if isinstance(f, VectorFeature)}
        if len(categories) + len(sparse) + len(vectors) < max(1, len(signature.features)):
            _refuse_features(signature, rule="be categorical, sparse or vectors", model="fm")
        _refuse_forecast(signature, model="fm")
        sizes = [f.size for f in categories.values()] + [f.columns for f in sparse.values()]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self.names = tuple(categories)
        self.sparse_offsets = dict(zip(sparse, offsets[len(categories) :], strict=True))
        self.vectors = nn.ModuleList([Standardized(name, feature) for name, feature in vectors.items()])
        self.unseen_rows = tuple(offsets[: len(categories)])
        self.num_index_rows = sum(sizes)
        num_numbers = sum(len(feature.names) for feature in vectors.values())
        self.num_rows = self.num_index_rows + num_numbers
        """Rows of the table."""
        self.num_fields = len(categories) + num_numbers + sum(min(SPARSE_FIELDS, f.columns) for f in sparse.values())
        """Fields of a typical sample."""
        offset_F = torch.tensor(self.unseen_rows, dtype=torch.int64)
        self.register_buffer("offset_F", offset_F, persistent=False)

    def forward(self, batch: Batch) -> Fields:
        """Return the fields of each sample."""
        rows = next(iter(batch.values())).shape[0]
        indices = [batch[name] for name in self.names]
        numbers = [vector(batch) for vector in self.vectors]
        index_BF = torch.stack(indices, dim=1) + self.offset_F if indices else self.offset_F.expand(rows, 0)
        x_BD = torch.cat(numbers, dim=1) if numbers else self.offset_F.new_zeros(rows, 0, dtype=torch.float32)
        if not self.sparse_offsets:
            return Fields(index_BF, None, x_BD)
        return Fields(*self._with_sparse(index_BF, batch), x_BD)

    def _with_sparse(self, index_BF: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return index_BF and value_BF, the categories' and after them the sparse rows'."""
        indices, values = [index_BF], [torch.ones_like(index_BF, dtype=torch.float32)]
        for name, offset in self.sparse_offsets.items():
            column_BT = batch[name] - 1  # -1 is padding
            indices.append(column_BT.clamp(min=0) + offset)
            values.append(batch[name + VALUE] * (column_BT >= 0))
        return torch.cat(indices, dim=1), torch.cat(values, dim=1)


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
    "text": "rnn",
    "audio": "rnn",
    "sparse": "fm",
}


def _refuse_features(signature: Signature, *, rule: str, model: str) -> NoReturn:
    kinds = {feature.kind for feature in signature.features.values()}
    cures = "; ".join(f"{kind}: {_READERS[kind]}" for kind in sorted(kinds))
    cure = f"Use a model.type that reads them ({cures})" if kinds else "Use a dataset that has some"
    raise ValueError(f"features must {rule} for model.type {model}, got {_described(signature)}. {cure}")


def _described(signature: Signature) -> str:
    return ", ".join(f"{feature.kind} {name!r}" for name, feature in signature.features.items()) or "none"
