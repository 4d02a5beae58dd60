"""The Open Inference Protocol v2 in JSON: tensors with name, shape, datatype and data, in both directions.

A category or a text is sent as BYTES, everything else as numbers. Data may be flat or nested. Sounds and sparse rows
are sent padded to the longest; how many elements of each are real is a tensor NAME.length, which may be left out when
all are. A sparse row is two tensors: its columns, counted from 0, and NAME.value.

B = batch, T = elements of the longest row
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.features import (
    LENGTH,
    UNKNOWN,
    VALUE,
    AudioFeature,
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    Feature,
    ForecastTarget,
    ImageFeature,
    NumberTarget,
    Signature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from serving.requests.inputs import MAX_SAMPLES, Batch, pad_rows
from serving.requests.outputs import require_finite, series_channels
from serving.requests.values import (
    InputError,
    category_index,
    feature_shape,
    flat_numbers,
    image_tensor,
    sound_tensor,
    stored_numbers,
    text_tokens,
)

INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
FLOATS = ("FP16", "FP32", "FP64")
MAX_ID = 256
_REQUEST_FIELDS = {"id", "parameters", "inputs", "outputs"}
_TENSOR_FIELDS = {"name", "shape", "datatype", "data", "parameters"}


class Expected(NamedTuple):
    """What a tensor of a request must be."""

    datatypes: tuple[str, ...]
    """What it may be sent as; the first one is advertised."""
    shape: tuple[int, ...]
    """The shape of one sample; -1 is any length."""
    optional: bool = False


def describe_tensors(signature: Signature) -> dict[str, list[dict[str, Any]]]:
    """The ``inputs`` and ``outputs`` of a model's metadata; the first dimension is the batch."""
    inputs = [
        {"name": name, "datatype": expected.datatypes[0], "shape": [-1, *expected.shape]}
        for name, expected in _tensors(signature).items()
    ]
    name, shape = _output(signature)
    return {"inputs": inputs, "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, *shape]}]}


def parse_request(request: Any, signature: Signature) -> Batch:
    """Turn the body of an ``infer`` request into a batch.

    Raises:
        InputError: naming the field that is wrong.
    """
    _require_object(request, _REQUEST_FIELDS, field=None)
    _check_envelope(request, signature)
    tensors = request.get("inputs")
    if not isinstance(tensors, list):
        raise InputError("missing_field", "inputs", "inputs must be a list of tensors, got none.")
    expected = _tensors(signature)
    found = {
        name: _parse_tensor(tensor, expected[name], field=f"inputs.{name}")
        for name, tensor in _by_name(tensors, expected).items()
    }
    sizes = {name: tensor.shape[0] for name, tensor in found.items()}
    if len(set(sizes.values())) > 1:
        raise InputError("wrong_shape", "inputs", f"inputs must all have the same first dimension, got {sizes}.")
    batch: Batch = {}
    for name, feature in signature.features.items():
        batch |= _parse_feature(name, feature, found)
    return batch


def request_of(batch: Batch, signature: Signature) -> dict[str, Any]:
    """The ``infer`` request that `parse_request` turns into this batch."""
    inputs = []
    for name, expected in _tensors(signature).items():
        shape, data = list(batch[name].shape), batch[name].flatten().tolist()
        match signature.features.get(name):
            case CategoricalFeature() as feature:
                data = [_category(index, feature) for index in data]
            case TextFeature() as feature:
                shape, data = shape[:1], [_text(row, feature) for row in batch[name].tolist()]
            case SparseFeature():
                data = [max(0, index - 1) for index in data]
            case VectorFeature() as feature if feature.offset:
                data = (batch[name].double() + torch.tensor(feature.offset, dtype=torch.float64)).flatten().tolist()
        inputs.append({"name": name, "shape": shape, "datatype": expected.datatypes[0], "data": data})
    return {"inputs": inputs}


def describe_output(output: Tensor, signature: Signature) -> list[dict[str, Any]]:
    """The ``outputs`` of an ``infer`` answer, its data flat.

    Raises:
        InputError: if a number is not finite.
    """
    require_finite(output)
    name, _ = _output(signature)
    return [{"name": name, "datatype": "FP32", "shape": list(output.shape), "data": output.flatten().tolist()}]


def output_tensor(outputs: list[dict[str, Any]]) -> Tensor:
    """The tensor of an answer's ``outputs``: the reverse of `describe_output`."""
    (answer,) = outputs
    return torch.tensor(answer["data"], dtype=torch.float32).reshape(answer["shape"])


def _tensors(signature: Signature) -> dict[str, Expected]:
    """The tensors of a request, in the order of the features."""
    found: dict[str, Expected] = {}
    for name, feature in signature.features.items():
        shape = feature_shape(feature, signature)
        match feature:
            case CategoricalFeature() | TextFeature():
                found[name] = Expected(("BYTES",), shape)
            case ImageFeature():
                found[name] = Expected(INTEGERS, shape)
            case SparseFeature():
                found[name] = Expected(("INT64", *INTEGERS), shape)
                found[name + VALUE] = Expected(("FP32", *FLOATS, *INTEGERS), shape)
            case _:
                found[name] = Expected(("FP32", *FLOATS, *INTEGERS), shape)
        if isinstance(feature, AudioFeature | SparseFeature):
            found[name + LENGTH] = Expected(("INT64", *INTEGERS), (), optional=True)
    return found


def _output(signature: Signature) -> tuple[str, tuple[int, ...]]:
    match signature.target:
        case ClassTarget(classes=classes):
            return "probabilities", (len(classes),)
        case NumberTarget():
            return "value", ()
        case ForecastTarget(horizon=horizon):
            return "forecast", (horizon, len(series_channels(signature)))
        case BoxesTarget():
            raise AssertionError("no model answers with boxes")


def _check_envelope(request: dict[str, Any], signature: Signature) -> None:
    identifier = request.get("id", "")
    if not isinstance(identifier, str) or len(identifier) > MAX_ID:
        raise InputError("wrong_type", "id", f"id must be text of {MAX_ID} characters or fewer, got something else.")
    if not isinstance(request.get("parameters", {}), dict):
        raise InputError("wrong_type", "parameters", "parameters must be an object, got something else.")
    name, _ = _output(signature)
    wanted = request.get("outputs", [])
    if not isinstance(wanted, list) or any(not isinstance(o, dict) or o.get("name") != name for o in wanted):
        raise InputError("unknown_output", "outputs", f"outputs must be left out or name {name!r}, got something else.")


def _by_name(tensors: list[Any], expected: dict[str, Expected]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    names = ", ".join(expected)
    for index, tensor in enumerate(tensors):
        field = f"inputs[{index}]"
        _require_object(tensor, _TENSOR_FIELDS, field=field)
        name = tensor.get("name")
        if not isinstance(name, str) or name not in expected:
            raise InputError("unknown_field", f"{field}.name", f"{field}.name must be one of {names}, got another.")
        if name in found:
            raise InputError(
                "duplicate_field", f"{field}.name", f"{field}.name must be given once, got {name!r} again."
            )
        found[name] = tensor
    for name, wanted in expected.items():
        if name not in found and not wanted.optional:
            raise InputError("missing_field", f"inputs.{name}", f"inputs must hold {name}, got no such tensor.")
    return found


class _Tensor(NamedTuple):
    """A tensor of a request whose envelope is checked: its shape is right, its data may still be anything."""

    shape: list[int]
    data: Any
    field: str


def _parse_tensor(tensor: dict[str, Any], expected: Expected, *, field: str) -> _Tensor:
    shape = _parse_shape(tensor.get("shape"), expected.shape, field=f"{field}.shape")
    if tensor.get("datatype") not in expected.datatypes:
        raise InputError(
            "wrong_datatype", f"{field}.datatype", f"{field}.datatype must be {expected.datatypes[0]}, got another one."
        )
    if "data" not in tensor:
        raise InputError("missing_field", f"{field}.data", f"{field}.data must be given, got no such field.")
    return _Tensor(shape, tensor["data"], f"{field}.data")


def _parse_shape(shape: Any, expected: tuple[int, ...], *, field: str) -> list[int]:
    wanted = str(["B", *expected]).replace("'", "").replace("-1", "T")
    if not isinstance(shape, list) or any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise InputError("wrong_shape", field, f"{field} must be {wanted}, got no list of whole numbers.")
    # many servers' clients send a category as [B, 1]
    if not _fits(shape[1:], expected) and not (expected == () and shape[1:] == [1]):
        raise InputError("wrong_shape", field, f"{field} must be {wanted}, got {str(shape)[:60]}.")
    if not shape or not 1 <= shape[0] <= MAX_SAMPLES:
        raise InputError(
            "wrong_size", field, f"{field} must begin with 1 to {MAX_SAMPLES} samples, got another number."
        )
    return [shape[0], *(shape[1:] if expected else [])]


def _fits(shape: list[int], expected: tuple[int, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    return all(n == wanted or (wanted == -1 and n >= 0) for n, wanted in zip(shape, expected, strict=True))


def _parse_feature(name: str, feature: Feature, found: dict[str, _Tensor]) -> Batch:
    """The part of a batch that is one feature's."""
    shape, _, field = found[name]
    match feature:
        case CategoricalFeature():
            texts = enumerate(_texts(found[name]))
            indices = [category_index(text, feature, field=f"{field}[{i}]") for i, text in texts]
            return {name: torch.tensor(indices, dtype=torch.int64)}
        case TextFeature():
            texts = enumerate(_texts(found[name]))
            return pad_rows(name, feature, [{name: text_tokens(t, feature, field=f"{field}[{i}]")} for i, t in texts])
        case AudioFeature():
            samples = _rows(name, found)
            return pad_rows(name, feature, [{name: sound_tensor(row, feature, field=field)} for row in samples])
        case SparseFeature():
            return pad_rows(name, feature, _sparse_rows(name, feature, found))
        case ImageFeature():
            return {name: image_tensor(_numbers(found[name]), shape, field=field)}
        case VectorFeature():
            return {name: stored_numbers(_numbers(found[name]), feature).reshape(shape)}
        case _:
            return {name: torch.tensor(_numbers(found[name]), dtype=torch.float32).reshape(shape)}


def _sparse_rows(name: str, feature: SparseFeature, found: dict[str, _Tensor]) -> list[Batch]:
    columns, values = _rows(name, found), _rows(name, found, suffix=VALUE)
    field, last = found[name].field, feature.columns - 1
    if found[name].shape != found[name + VALUE].shape:
        raise InputError("wrong_shape", field, f"{field} must have as many elements as {name + VALUE}, got others.")
    if any(not 0 <= column <= last or column != int(column) for row in columns for column in row):
        raise InputError("out_of_range", field, f"{field} must hold columns from 0 to {last}, got others.")
    if any(len(set(row)) < len(row) for row in columns):
        raise InputError("duplicate_field", field, f"{field} must hold a column once, got one again.")
    return [
        {name: torch.tensor(row, dtype=torch.int64) + 1, name + VALUE: torch.tensor(value, dtype=torch.float32)}
        for row, value in zip(columns, values, strict=True)
    ]


def _rows(name: str, found: dict[str, _Tensor], *, suffix: str = "") -> list[list[float]]:
    """The real elements of each row of a padded tensor."""
    size, longest = found[name + suffix].shape
    numbers = _numbers(found[name + suffix])
    rows = [numbers[i * longest : (i + 1) * longest] for i in range(size)]
    if name + LENGTH not in found:
        return rows
    lengths, field = _numbers(found[name + LENGTH]), found[name + LENGTH].field
    if any(not 0 <= n <= longest or n != int(n) for n in lengths):
        raise InputError("out_of_range", field, f"{field} must hold whole numbers from 0 to {longest}, got others.")
    return [row[: int(n)] for row, n in zip(rows, lengths, strict=True)]


def _numbers(tensor: _Tensor) -> list[float]:
    """The numbers of a tensor, flat; its data may be nested."""
    nested = isinstance(tensor.data, list) and bool(tensor.data) and isinstance(tensor.data[0], list)
    return flat_numbers(tensor.data, tensor.shape if nested else [math.prod(tensor.shape)], field=tensor.field)


def _texts(tensor: _Tensor) -> list[str]:
    [size], data, field = tensor
    if not isinstance(data, list) or len(data) != size:
        raise InputError("wrong_shape", field, f"{field} must be a list of {size} texts, got something else.")
    values = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in data]
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError("wrong_type", f"{field}[{index}]", f"{field}[{index}] must be text, got something else.")
    return values


def _text(tokens: list[int], feature: TextFeature) -> str:
    """A text of these tokens, the padding left out; unknown ones become a word that is not in the vocabulary."""
    unknown = "unknown"
    while unknown in feature.vocabulary:
        unknown += "x"
    first = UNKNOWN + 1
    return " ".join(feature.vocabulary[token - first] if token >= first else unknown for token in tokens if token)


def _category(index: int, feature: CategoricalFeature) -> str:
    """The text of a category's index; for 0, one that is not in the vocabulary."""
    if index > 0:
        return feature.vocabulary[index - 1]
    text = "never seen"
    while text in feature.vocabulary:
        text += "!"
    return text


def _require_object(value: Any, fields: set[str], *, field: str | None) -> None:
    where = field or "the body"
    if not isinstance(value, dict):
        raise InputError("wrong_type", field, f"{where} must be an object, got something else.")
    for key in value.keys() - fields:
        raise InputError(
            "unknown_field", key[:60], f"{where} must hold only {', '.join(sorted(fields))}, got {key[:60]!r}."
        )
