"""Turns what a client sends (JSON, a picture) into a batch for a network, and refuses everything else by name.

B = batch, C = channels, H = height, W = width, D = numbers in a vector, T = lookback
"""

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cluster.errors import ConfigError
from models.features import (
    CategoricalFeature,
    Feature,
    ForecastTarget,
    ImageFeature,
    SeriesFeature,
    Signature,
    VectorFeature,
)

MAX_SAMPLES = 1024
MAX_PIXELS = 25_000_000  # 75 MB decoded as RGB; a phone's picture has 12 million
MAX_TEXT = 1024  # characters of a categorical value
MAX_FLOAT32 = 3.4028234663852886e38
PICTURE_FORMATS = ("PNG", "JPEG")

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
    return {name: torch.stack([row[name] for row in rows]) for name in signature.features}


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
    """Decode a PNG or JPEG file to the feature's channels and size, as uint8 [C, H, W].

    The orientation in a photo's EXIF data is applied, transparent pixels are laid on white, 16 bits are reduced to
    8, and another size is scaled without keeping the aspect ratio.

    Raises:
        InputError: if the bytes are no picture, or have more than ``MAX_PIXELS`` (refused before decoding).
    """
    channels, height, width = feature.shape
    if channels not in (1, 3):
        raise InputError("bad_picture", field, f"{field} must be sent as numbers, the model reads {channels} channels.")
    try:
        picture = _open_picture(content, field)
        picture = _flatten_alpha(ImageOps.exif_transpose(picture)).convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(field) from None
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise InputError(
            "bad_picture", field, f"{field} must be a whole PNG or JPEG picture, got {type(error).__name__}."
        ) from None
    pixels = np.asarray(picture).reshape(height, width, channels)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


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
    if len(text) > MAX_TEXT:
        raise InputError("too_long", field, f"{field} must have {MAX_TEXT} characters or fewer, got {len(text)}.")
    return _index_of(feature).get(text, 0)


def feature_shape(feature: Feature, signature: Signature) -> tuple[int, ...]:
    """Shape of one sample's tensor: () for a category."""
    match feature:
        case ImageFeature():
            return feature.shape
        case VectorFeature():
            return (len(feature.names),)
        case SeriesFeature():
            assert isinstance(signature.target, ForecastTarget), "only forecasts read a series"
            return (signature.target.lookback, len(feature.channels))
        case CategoricalFeature():
            return ()


def image_tensor(numbers: list[float], shape: Sequence[int], *, field: str) -> Tensor:
    """Pixels 0..255 as uint8 of this shape.

    Raises:
        InputError: if one is not a whole number of that range.
    """
    pixels = torch.tensor(numbers, dtype=torch.float64)
    if bool(((pixels < 0) | (pixels > 255) | (pixels != pixels.round())).any()):
        raise InputError("out_of_range", field, f"{field} must hold whole numbers from 0 to 255, got others.")
    return pixels.to(torch.uint8).reshape(tuple(shape))


def _parse_sample(sample: Any, signature: Signature, *, prefix: str) -> dict[str, Tensor]:
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
    return {
        name: _parse_value(sample[name], feature, signature, field=prefix + name)
        for name, feature in signature.features.items()
    }


def _parse_value(value: Any, feature: Feature, signature: Signature, *, field: str) -> Tensor:
    shape = feature_shape(feature, signature)
    match feature:
        case CategoricalFeature():
            return torch.tensor(category_index(value, feature, field=field), dtype=torch.int64)
        case ImageFeature():
            if isinstance(value, str):
                return decode_picture(_base64(value, field), feature, field=field)
            return image_tensor(flat_numbers(value, shape, field=field), shape, field=field)
        case VectorFeature() if isinstance(value, dict):
            value = _in_order(value, feature.names, field)
        case SeriesFeature() if isinstance(value, list):
            value = [_row(step, feature.channels, f"{field}[{t}]") for t, step in enumerate(value)]
    return torch.tensor(flat_numbers(value, shape, field=field), dtype=torch.float32).reshape(shape)


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


def _open_picture(content: bytes, field: str) -> Image.Image:
    picture = Image.open(io.BytesIO(content), formats=PICTURE_FORMATS)  # reads the header only
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_many_pixels(field)
    picture.load()
    if picture.mode.startswith("I"):  # 16 bits: `convert` would clip them instead of scaling
        return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
    return picture


def _flatten_alpha(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture)


def _too_many_pixels(field: str) -> InputError:
    return InputError("too_many_pixels", field, f"{field} must have {MAX_PIXELS:,} pixels or fewer, got more.")


def _base64(text: str, field: str) -> bytes:
    head, comma, data = text.partition(",")
    if comma and not (head.startswith("data:image/") and head.endswith(";base64")):
        data = text
    try:
        return base64.b64decode(data if comma else text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("bad_base64", field, f"{field} must be pixels, or a picture in base64, got text.") from None


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
