"""Turns what a client sends (JSON, a picture, a sound) into a batch for a network, and refuses all else by name.

B = batch, C = channels, H = height, W = width, D = numbers in a vector, T = lookback, or the longest of a batch
"""

import base64
import binascii
import io
import json
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cluster.errors import ConfigError
from models import pictures
from models.features import (
    LENGTH,
    VALUE,
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
from models.text import tokens

MAX_SAMPLES = 1024
MAX_PIXELS = 25_000_000  # 75 MB decoded as RGB; a phone's picture has 12 million
MAX_CATEGORY = 1024  # characters
MAX_TEXT = 100_000  # characters; a long newspaper article has 30,000
MAX_PADDED = {"text": 2**18, "sparse": 2**18, "audio": 2**22}  # of a request when all its samples are as the longest
MAX_FLOAT32 = 3.4028234663852886e38

Batch = dict[str, Tensor]


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


def read_json(body: bytes) -> Any:
    """Parse strict JSON: UTF-8, no NaN or Infinity, no key twice in an object, no lone surrogates.

    Raises:
        InputError: with status 400.
    """
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _bad_json("must not hold half of a surrogate pair") from None
    except UnicodeDecodeError:
        raise _bad_json("must be UTF-8") from None
    except RecursionError:
        raise _bad_json("must not be nested that deep") from None
    except json.JSONDecodeError as error:
        raise _bad_json(f"must be JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError:
        raise _bad_json("must not hold integers of thousands of digits") from None
    return value


def parse_samples(value: Any, signature: Signature) -> Batch:
    """Turn one sample, ``{feature: value}``, or a list of samples into a batch.

    Raises:
        InputError: naming the field that is wrong.
    """
    samples = value if isinstance(value, list) else [value]
    if not 1 <= len(samples) <= MAX_SAMPLES:
        raise InputError("wrong_size", None, f"the list must hold 1 to {MAX_SAMPLES} samples, got {len(samples)}.")
    prefixes = [f"[{i}]." if isinstance(value, list) else "" for i in range(len(samples))]
    rows = [_parse_sample(s, signature, prefix=p) for s, p in zip(samples, prefixes, strict=True)]
    batch: Batch = {}
    for name, feature in signature.features.items():
        if isinstance(feature, TextFeature | AudioFeature | SparseFeature):
            batch |= pad_rows(name, feature, rows)
        else:
            batch[name] = torch.stack([row[name] for row in rows])
    return batch


def pad_rows(name: str, feature: TextFeature | AudioFeature | SparseFeature, rows: Sequence[Batch]) -> Batch:
    """Put one ragged feature of several samples together: padded [B, T], its lengths, and a sparse one's values.

    Args:
        name: of the feature.
        feature: what it is.
        rows: each sample's own tensor [its length] under ``name``, and a sparse one's values [its length].

    Raises:
        InputError: if it would be more than ``MAX_PADDED``, which one long sample among many short ones can cause.
    """
    lengths = [len(row[name]) for row in rows]
    if len(rows) * max(lengths) > MAX_PADDED[feature.kind]:
        raise InputError(
            "too_large",
            name,
            f"{name} must have {MAX_PADDED[feature.kind]} elements or fewer with all samples as long as the longest, "
            f"got {len(rows)} samples of up to {max(lengths)}. Send fewer at a time.",
            status=413,
        )
    keys = [name, name + VALUE] if isinstance(feature, SparseFeature) else [name]
    batch = {key: pad_sequence([row[key] for row in rows], batch_first=True) for key in keys}
    return batch | {name + LENGTH: torch.tensor(lengths)}


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of all samples of several; what is shorter than the longest is padded with 0."""
    return {name: _join([batch[name] for batch in batches]) for name in batches[0]}


def parse_file(content: bytes, signature: Signature) -> Batch:
    """Turn a file, a sound for a model that reads exactly one and otherwise a picture, into a batch of one.

    Raises:
        InputError: if the model reads something else, or the file is not what it reads.
    """
    (name, feature), *others = signature.features.items()
    if others or not isinstance(feature, AudioFeature):
        return parse_picture(content, signature)
    return pad_rows(name, feature, [{name: decode_sound(content, feature, field=name)}])


def parse_picture(content: bytes, signature: Signature) -> Batch:
    """Turn a PNG or JPEG file into a batch of one.

    Raises:
        InputError: if the model does not read exactly one picture, or the file is not one.
    """
    name, feature = only_picture(signature)
    return {name: decode_picture(content, feature, field=name).unsqueeze(0)}


def only_picture(signature: Signature) -> tuple[str, ImageFeature]:
    """Name and feature of the one picture that the model reads.

    Raises:
        InputError: with status 415 if it reads something else.
    """
    (name, feature), *others = signature.features.items()
    if others or not isinstance(feature, ImageFeature):
        names = ", ".join(signature.features)
        raise InputError(
            "not_a_picture_model", None, f"the model must be sent JSON with {names}, got a picture.", status=415
        )
    return name, feature


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
    """Decode a WAV file to samples from -1 to 1, cut to ``max_samples``.

    Raises:
        InputError: if the bytes are no WAV file, hold no sound, or have another sample rate.
    """
    samples, sample_rate = read_wav(content, field=field)
    if sample_rate != feature.sample_rate:
        raise InputError(
            "wrong_sample_rate",
            field,
            f"{field} must have {feature.sample_rate} samples per second, got {sample_rate}. "
            f"Convert it: `ffmpeg -i IN.wav -ar {feature.sample_rate} OUT.wav`.",
        )
    return torch.from_numpy(samples[: feature.max_samples])


def read_wav(content: bytes, *, field: str) -> tuple[npt.NDArray[np.float32], int]:
    """Samples from -1 to 1 and sample rate of a WAV file; several channels become their mean.

    PCM of 8, 16, 24 and 32 bits is read. Samples are rounded to 16 bits, as a dataset holds them.

    Raises:
        InputError: if the bytes are something else, or hold no sound.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            num_channels, width, sample_rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError) as error:  # the last from chunks that do not fit into each other
        reason = str(error) or "a damaged file"
        raise InputError("bad_sound", field, f"{field} must be a WAV file with PCM samples, got {reason}.") from None
    num_frames = len(data) // (num_channels * width)
    if width > 4 or not num_frames or not sample_rate:
        found = f"{num_frames} samples of {8 * width} bits at {sample_rate} a second"
        raise InputError("bad_sound", field, f"{field} must hold samples of 8, 16, 24 or 32 bits, got {found}.")
    samples = _pcm_16(data[: num_frames * num_channels * width], width).reshape(num_frames, num_channels)
    return np.rint(samples.mean(1)).astype(np.float32) / np.float32(2**15), sample_rate


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
        raise InputError("wrong_type", field, f"{field} must be text, got {_found(value)}.")
    _require_characters(value, MAX_TEXT, field)
    return torch.tensor(tokens(value, feature), dtype=torch.int64)


def flat_numbers(value: Any, shape: Sequence[int], *, field: str) -> list[float]:
    """The numbers of a nested list of exactly this shape, in order.

    Raises:
        InputError: naming the first list of another length, and the first element that is no finite float32.
    """
    if not shape:
        return [_number(value, field)]
    if not isinstance(value, list):
        raise InputError("wrong_type", field, f"{field} must be a list of {shape[0]}, got {_found(value)}.")
    if len(value) != shape[0]:
        raise InputError("wrong_shape", field, f"{field} must be a list of {shape[0]}, got {len(value)} elements.")
    numbers: list[float] = []
    for index, element in enumerate(value):
        numbers += flat_numbers(element, shape[1:], field=f"{field}[{index}]")
    return numbers


def category_index(value: Any, feature: CategoricalFeature, *, field: str) -> int:
    """Index of a category's value; 0 for one that training never saw.

    Raises:
        InputError: if it is neither text nor a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError("wrong_type", field, f"{field} must be text or a whole number, got {_found(value)}.")
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


def _parse_sample(sample: Any, signature: Signature, *, prefix: str) -> Batch:
    if not isinstance(sample, dict):
        expected = "{" + ", ".join(f'"{name}": ...' for name in signature.features) + "}"
        field = prefix.rstrip(".") or None
        raise InputError("wrong_type", field, f"a sample must be an object {expected}, got {_found(sample)}.")
    for key in sample.keys() - signature.features.keys():
        names = ", ".join(signature.features)
        raise InputError("unknown_field", prefix + key[:60], f"a field must be one of {names}, got {key[:60]!r}.")
    for name in signature.features:
        if name not in sample:
            raise InputError("missing_field", prefix + name, f"{prefix}{name} must be given, got no such field.")
    row: Batch = {}
    for name, feature in signature.features.items():
        if isinstance(feature, SparseFeature):
            row[name], row[name + VALUE] = _parse_sparse(sample[name], feature, field=prefix + name)
        else:
            row[name] = _parse_value(sample[name], feature, signature, field=prefix + name)
    return row


def _parse_value(value: Any, feature: Feature, signature: Signature, *, field: str) -> Tensor:
    shape = feature_shape(feature, signature)
    match feature:
        case CategoricalFeature():
            return torch.tensor(category_index(value, feature, field=field), dtype=torch.int64)
        case TextFeature():
            return text_tokens(value, feature, field=field)
        case AudioFeature():
            return _parse_sound(value, feature, field=field)
        case ImageFeature():
            if isinstance(value, str):
                content = _base64(value, field, media="image", what="pixels, or a picture")
                return decode_picture(content, feature, field=field)
            return image_tensor(flat_numbers(value, shape, field=field), shape, field=field)
        case VectorFeature() if isinstance(value, dict):
            value = _in_order(value, feature.names, field)
        case SeriesFeature() if isinstance(value, list):
            value = [_row(step, feature.channels, f"{field}[{t}]") for t, step in enumerate(value)]
    return torch.tensor(flat_numbers(value, shape, field=field), dtype=torch.float32).reshape(shape)


def _parse_sound(value: Any, feature: AudioFeature, *, field: str) -> Tensor:
    if isinstance(value, str):
        content = _base64(value, field, media="audio", what="samples, or a WAV file")
        return decode_sound(content, feature, field=field)
    if not isinstance(value, list):
        raise InputError("wrong_type", field, f"{field} must be a list of samples, got {_found(value)}.")
    return sound_tensor(flat_numbers(value, [len(value)], field=field), feature, field=field)


def _parse_sparse(value: Any, feature: SparseFeature, *, field: str) -> tuple[Tensor, Tensor]:
    """Index [T] of each column, which is one more than its number, and value [T], in the order of the columns."""
    if not isinstance(value, dict):
        raise InputError(
            "wrong_type", field, f'{field} must be an object {{"column": value, ...}}, got {_found(value)}.'
        )
    found = {_column(key, feature, field): _number(number, f"{field}.{key[:60]}") for key, number in value.items()}
    columns = sorted(found)
    index_T = torch.tensor(columns, dtype=torch.int64) + 1
    return index_T, torch.tensor([found[column] for column in columns], dtype=torch.float32)


def _column(key: str, feature: SparseFeature, field: str) -> int:
    column = int(key) if key.isascii() and key.isdecimal() and len(key) < 20 else -1
    if not 0 <= column < feature.columns or str(column) != key:
        raise InputError(
            "unknown_field",
            f"{field}.{key[:60]}",
            f"{field} must hold columns from 0 to {feature.columns - 1}, got {key[:60]!r}.",
        )
    return column


def _row(step: Any, channels: tuple[str, ...], field: str) -> Any:
    """One time step: an object by channel, or, with one channel, a bare number."""
    if isinstance(step, dict):
        return _in_order(step, channels, field)
    return [step] if len(channels) == 1 and not isinstance(step, list) else step


def _in_order(value: Mapping[str, Any], names: tuple[str, ...], field: str) -> list[Any]:
    for key in value.keys() - set(names):
        raise InputError(
            "unknown_field", f"{field}.{key[:60]}", f"{field} must hold only {', '.join(names)}, got {key[:60]!r}."
        )
    for name in names:
        if name not in value:
            raise InputError("missing_field", f"{field}.{name}", f"{field}.{name} must be given, got no such field.")
    return [value[name] for name in names]


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError("wrong_type", field, f"{field} must be a number, got {_found(value)}.")
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


def _pcm_16(data: bytes, width: int) -> npt.NDArray[np.int16]:
    """Samples of ``width`` bytes as their highest 16 bits; those of 8 bits, and only they, are unsigned."""
    bytes_NW = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:
        return (bytes_NW[:, 0].astype(np.int16) - 128) * 256
    return np.ascontiguousarray(bytes_NW[:, -2:]).view("<i2")[:, 0]


def _join(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].ndim == 2:
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [F.pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors]
    return torch.cat(list(tensors))


def _base64(text: str, field: str, *, media: str, what: str) -> bytes:
    head, comma, data = text.partition(",")
    if comma and not (head.startswith(f"data:{media}/") and head.endswith(";base64")):
        data = text
    try:
        return base64.b64decode(data if comma else text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("bad_base64", field, f"{field} must be {what} in base64, got text.") from None


def _require_characters(text: str, limit: int, field: str) -> None:
    if len(text) > limit:
        raise InputError("too_long", field, f"{field} must have {limit} characters or fewer, got {len(text)}.")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _bad_json("must not hold a key twice in an object")
    return found


def _no_constant(name: str) -> None:
    raise _bad_json(f"must not hold {name}, which is not JSON")


def _bad_json(rule: str) -> InputError:
    return InputError("bad_json", None, f"the body {rule}.", status=400)


def _found(value: Any) -> str:
    """A short word for what was sent instead; never its content, which may be long or private."""
    kinds = {bool: "a truth value", str: "text", dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value), "a number")
