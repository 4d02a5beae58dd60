"""One value of a request to one tensor: pictures, sounds, texts, numbers and categories."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import ConfigError
from models import pictures
from models.features import (
    AudioFeature,
    CategoricalFeature,
    Feature,
    ForecastTarget,
    ImageFeature,
    SeriesFeature,
    Signature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from models.preparing.sounds import SoundError, decode_wav, resample
from models.text import tokens

MAX_PIXELS = 25_000_000  # 75 MB decoded as RGB; a phone's picture has 12 million
MAX_CATEGORY = 1024  # characters
MAX_TEXT = 100_000  # characters; a long newspaper article has 30,000
MAX_FLOAT32 = 3.4028234663852886e38


class InputError(ConfigError):
    """An input is not what the model reads; carries what an HTTP answer needs."""

    def __init__(self, code: str, field: str | None, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.status = status

    def body(self) -> dict[str, str | None]:
        """The JSON body of the HTTP answer."""
        return {"code": self.code, "field": self.field, "message": str(self)}


def decode_picture(content: bytes, feature: ImageFeature, *, field: str) -> Tensor:
    """Decode a PNG or JPEG file to the feature's channels and size, as uint8 [C, H, W], as training did.

    Raises:
        InputError: if the bytes are no picture, or have more than ``MAX_PIXELS`` (refused before decoding).
    """
    channels = feature.shape[0]
    if channels not in (1, 3):
        raise InputError("bad_picture", field, f"{field} must be sent as numbers, the model reads {channels} channels.")
    try:
        return torch.tensor(pictures.decode_picture(content, feature.shape, max_pixels=MAX_PIXELS))
    except pictures.TooManyPixelsError:
        raise InputError(
            "too_many_pixels", field, f"{field} must have {MAX_PIXELS:,} pixels or fewer, got more."
        ) from None
    except pictures.PictureError as error:
        reason = str(error)[:60]
        raise InputError("bad_picture", field, f"{field} must be a whole PNG or JPEG picture, got {reason}.") from None


def decode_sound(content: bytes, feature: AudioFeature, *, field: str) -> Tensor:
    """Decode a WAV file to samples from -1 to 1 at the feature's rate, cut to ``max_samples``, as training did.

    Raises:
        InputError: if the bytes are no WAV file, hold no sound, or have another sample rate where the sounds of
            training were not resampled.
    """
    try:
        samples, sample_rate = decode_wav(content)
        if sample_rate != feature.sample_rate and not feature.resampled:
            raise _wrong_rate(sample_rate, feature, field)
        samples = resample(samples, sample_rate, feature.sample_rate, most=feature.max_samples)
    except SoundError as error:
        raise InputError("bad_sound", field, f"{field} must be a whole WAV file, got {error}.") from None
    if not len(samples):
        raise InputError("bad_sound", field, f"{field} must hold a sound, got no samples.")
    return torch.from_numpy(samples.astype(np.float32) / np.float32(2**15))


def _wrong_rate(sample_rate: int, feature: AudioFeature, field: str) -> InputError:
    return InputError(
        "wrong_sample_rate",
        field,
        f"{field} must have {feature.sample_rate} samples per second, got {sample_rate}. "
        f"Convert it: `ffmpeg -i IN.wav -ar {feature.sample_rate} OUT.wav`.",
    )


def sound_tensor(numbers: list[float], feature: AudioFeature, *, field: str) -> Tensor:
    """Samples of a sound as float32, cut to ``max_samples``.

    Raises:
        InputError: if one is not from -1 to 1.
    """
    samples = torch.tensor(numbers[: feature.max_samples], dtype=torch.float32)
    if bool((samples.abs() > 1).any()):
        raise InputError("out_of_range", field, f"{field} must hold samples from -1 to 1, got others.")
    return samples


def text_tokens(value: Any, feature: TextFeature, *, field: str) -> Tensor:
    """Tokens of a text, int64 [their number].

    Raises:
        InputError: if it is no text, or longer than ``MAX_TEXT``.
    """
    if not isinstance(value, str):
        raise InputError("wrong_type", field, f"{field} must be text, got {shown_value(value)}.")
    _require_characters(value, MAX_TEXT, field)
    return torch.tensor(tokens(value, feature), dtype=torch.int64)


def flat_numbers(value: Any, shape: Sequence[int], *, field: str) -> list[float]:
    """The numbers of a nested list of exactly this shape, in order.

    Raises:
        InputError: naming the first list of another length, and the first element that is no finite float32.
    """
    if not shape:
        return [one_number(value, field)]
    if not isinstance(value, list):
        raise InputError("wrong_type", field, f"{field} must be a list of {shape[0]}, got {shown_value(value)}.")
    if len(value) != shape[0]:
        raise InputError("wrong_shape", field, f"{field} must be a list of {shape[0]}, got {len(value)} elements.")
    numbers: list[float] = []
    for index, element in enumerate(value):
        numbers += flat_numbers(element, shape[1:], field=f"{field}[{index}]")
    return numbers


def stored_numbers(numbers: list[float], feature: VectorFeature) -> Tensor:
    """Vectors as a dataset stores them, one after another [N, D] or one [D]: less their offset, in 32 bits."""
    width = len(feature.names)
    rows = torch.tensor(numbers, dtype=torch.float64).reshape(-1, width)
    stored = (rows - torch.tensor(feature.offsets, dtype=torch.float64)).to(torch.float32)
    return stored[0] if len(numbers) == width else stored


def category_index(value: Any, feature: CategoricalFeature, *, field: str) -> int:
    """Index of a category's value; 0 for one that training never saw.

    Raises:
        InputError: if it is neither text nor a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError("wrong_type", field, f"{field} must be text or a whole number, got {shown_value(value)}.")
    text = value if isinstance(value, str) else _integer_text(value, field)
    _require_characters(text, MAX_CATEGORY, field)
    return _index_of(feature).get(text, 0)


def feature_shape(feature: Feature, signature: Signature) -> tuple[int, ...]:
    """Shape of one sample's tensor in a request: () for a category and a text, (-1,) where every sample has its own."""
    match feature:
        case ImageFeature():
            return feature.shape
        case VectorFeature():
            return (len(feature.names),)
        case SeriesFeature():
            assert isinstance(signature.target, ForecastTarget), "only forecasts read a series"
            return (signature.target.lookback, len(feature.channels))
        case CategoricalFeature() | TextFeature():
            return ()
        case AudioFeature() | SparseFeature():
            return (-1,)


def image_tensor(numbers: list[float], shape: Sequence[int], *, field: str) -> Tensor:
    """Pixels 0..255 as uint8 of this shape.

    Raises:
        InputError: if one is not a whole number of that range.
    """
    pixels = torch.tensor(numbers, dtype=torch.float64)
    if bool(((pixels < 0) | (pixels > 255) | (pixels != pixels.round())).any()):
        raise InputError("out_of_range", field, f"{field} must hold whole numbers from 0 to 255, got others.")
    return pixels.to(torch.uint8).reshape(tuple(shape))


def one_number(value: Any, field: str) -> float:
    """Return a finite 32-bit number.

    Raises:
        InputError: the value is of another kind or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError("wrong_type", field, f"{field} must be a number, got {shown_value(value)}.")
    if not -MAX_FLOAT32 <= value <= MAX_FLOAT32:  # also false for NaN
        raise InputError("out_of_range", field, f"{field} must be a finite 32-bit number, got a larger one.")
    return float(value)


def _integer_text(value: int, field: str) -> str:
    if abs(value) >= 2**63:
        raise InputError("out_of_range", field, f"{field} must be a 64-bit whole number or text, got a larger one.")
    return str(value)


_INDEXES: dict[int, tuple[CategoricalFeature, dict[str, int]]] = {}


def _index_of(feature: CategoricalFeature) -> dict[str, int]:
    """Value to index, built once per feature: searching a long vocabulary would cost each request milliseconds."""
    if id(feature) not in _INDEXES:  # the feature is kept too, so its id cannot be given to another
        _INDEXES[id(feature)] = (feature, {text: i for i, text in enumerate(feature.vocabulary, start=1)})
    return _INDEXES[id(feature)][1]


def _require_characters(text: str, limit: int, field: str) -> None:
    if len(text) > limit:
        raise InputError("too_long", field, f"{field} must have {limit} characters or fewer, got {len(text)}.")


def shown_value(value: Any) -> str:
    """A short word for what was sent instead; never its content, which may be long or private."""
    kinds = {bool: "a truth value", str: "text", dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value), "a number")
