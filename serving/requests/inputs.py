"""What a request may hold, and how it becomes a batch."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from models.features import (
    LENGTH,
    VALUE,
    AudioFeature,
    CategoricalFeature,
    Feature,
    ImageFeature,
    SeriesFeature,
    Signature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from models.preparing.rows import RowError, features_of
from serving.requests.series import with_missing
from serving.requests.values import (
    InputError,
    category_index,
    decode_picture,
    decode_sound,
    feature_shape,
    flat_numbers,
    image_tensor,
    one_number,
    shown_value,
    sound_tensor,
    stored_numbers,
    text_tokens,
)

MAX_SAMPLES = 1024
MAX_PADDED = {"text": 2**18, "sparse": 2**18, "audio": 2**22}  # of a request when all its samples are as the longest

Batch = dict[str, Tensor]


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
    """Turn one sample, ``{feature: value}`` or a row of the source, or a list of samples into a batch.

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


def _parse_sample(sample: Any, signature: Signature, *, prefix: str) -> Batch:
    if not isinstance(sample, dict):
        known = [*(signature.rows.columns if signature.rows else signature.features)]
        expected = "{" + ", ".join(f'"{name}": ...' for name in known) + "}"
        field = prefix.rstrip(".") or None
        raise InputError("wrong_type", field, f"a sample must be an object {expected}, got {shown_value(sample)}.")
    sample = _as_features(sample, signature, prefix=prefix)
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


def _as_features(sample: dict[str, Any], signature: Signature, *, prefix: str) -> dict[str, Any]:
    """Return what a row of the source stands for; a sample that names features and no column stays as it is."""
    if signature.rows is None or not signature.is_row(sample.keys()):
        return sample
    try:
        return features_of(sample, signature.rows)
    except RowError as error:
        field = None if error.field is None else prefix + error.field[:60]
        raise InputError(error.code, field, f"{prefix if error.code != 'unknown_field' else ''}{error}") from None


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
            value = with_missing(value, feature, field=field)
    numbers = flat_numbers(value, shape, field=field)
    if isinstance(feature, VectorFeature):
        return stored_numbers(numbers, feature)
    return torch.tensor(numbers, dtype=torch.float32).reshape(shape)


def _parse_sound(value: Any, feature: AudioFeature, *, field: str) -> Tensor:
    if isinstance(value, str):
        content = _base64(value, field, media="audio", what="samples, or a WAV file")
        return decode_sound(content, feature, field=field)
    if not isinstance(value, list):
        raise InputError("wrong_type", field, f"{field} must be a list of samples, got {shown_value(value)}.")
    return sound_tensor(flat_numbers(value, [len(value)], field=field), feature, field=field)


def _parse_sparse(value: Any, feature: SparseFeature, *, field: str) -> tuple[Tensor, Tensor]:
    """Index [T] of each column, which is one more than its number, and value [T], in the order of the columns."""
    if not isinstance(value, dict):
        raise InputError(
            "wrong_type", field, f'{field} must be an object {{"column": value, ...}}, got {shown_value(value)}.'
        )
    found = {_column(key, feature, field): one_number(number, f"{field}.{key[:60]}") for key, number in value.items()}
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


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _bad_json("must not hold a key twice in an object")
    return found


def _no_constant(name: str) -> None:
    raise _bad_json(f"must not hold {name}, which is not JSON")


def _bad_json(rule: str) -> InputError:
    return InputError("bad_json", None, f"the body {rule}.", status=400)
