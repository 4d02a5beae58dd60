"""The Open Inference Protocol v2 in JSON: tensors with name, shape, datatype and data, in both directions.

A category is sent as BYTES (its text), everything else as numbers. Data may be flat or nested.
"""

import math
from typing import Any

import torch
from torch import Tensor

from models.features import (
    CategoricalFeature,
    ClassTarget,
    Feature,
    ForecastTarget,
    ImageFeature,
    NumberTarget,
    Signature,
)
from serving.inputs import (
    MAX_SAMPLES,
    Batch,
    InputError,
    category_index,
    feature_shape,
    flat_numbers,
    image_tensor,
)
from serving.outputs import require_finite, series_channels

INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
FLOATS = ("FP16", "FP32", "FP64")
MAX_ID = 256
_REQUEST_FIELDS = {"id", "parameters", "inputs", "outputs"}
_TENSOR_FIELDS = {"name", "shape", "datatype", "data", "parameters"}


def describe_tensors(signature: Signature) -> dict[str, list[dict[str, Any]]]:
    """The ``inputs`` and ``outputs`` of a model's metadata; the first dimension is the batch."""
    inputs = [
        {"name": name, "datatype": _datatypes(feature)[0], "shape": [-1, *feature_shape(feature, signature)]}
        for name, feature in signature.features.items()
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
    by_name = _by_name(tensors, signature)
    batch = {
        name: _parse_tensor(by_name[name], feature, signature, field=f"inputs.{name}")
        for name, feature in signature.features.items()
    }
    sizes = {name: len(tensor) for name, tensor in batch.items()}
    if len(set(sizes.values())) > 1:
        raise InputError("wrong_shape", "inputs", f"inputs must all have the same first dimension, got {sizes}.")
    return batch


def request_of(batch: Batch, signature: Signature) -> dict[str, Any]:
    """The ``infer`` request that `parse_request` turns into this batch."""
    inputs = []
    for name, feature in signature.features.items():
        values = batch[name].flatten().tolist()
        if isinstance(feature, CategoricalFeature):
            values = [_category(index, feature) for index in values]
        shape = list(batch[name].shape)
        inputs.append({"name": name, "shape": shape, "datatype": _datatypes(feature)[0], "data": values})
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


def _datatypes(feature: Feature) -> tuple[str, ...]:
    """What a tensor may be sent as; the first one is advertised."""
    if isinstance(feature, CategoricalFeature):
        return ("BYTES",)
    if isinstance(feature, ImageFeature):
        return INTEGERS
    return ("FP32", *FLOATS, *INTEGERS)


def _output(signature: Signature) -> tuple[str, tuple[int, ...]]:
    match signature.target:
        case ClassTarget(classes=classes):
            return "probabilities", (len(classes),)
        case NumberTarget():
            return "value", ()
        case ForecastTarget(horizon=horizon):
            return "forecast", (horizon, len(series_channels(signature)))


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


def _by_name(tensors: list[Any], signature: Signature) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    names = ", ".join(signature.features)
    for index, tensor in enumerate(tensors):
        field = f"inputs[{index}]"
        _require_object(tensor, _TENSOR_FIELDS, field=field)
        name = tensor.get("name")
        if not isinstance(name, str) or name not in signature.features:
            raise InputError("unknown_field", f"{field}.name", f"{field}.name must be one of {names}, got another.")
        if name in found:
            raise InputError(
                "duplicate_field", f"{field}.name", f"{field}.name must be given once, got {name!r} again."
            )
        found[name] = tensor
    for name in signature.features:
        if name not in found:
            raise InputError("missing_field", f"inputs.{name}", f"inputs must hold {name}, got no such tensor.")
    return found


def _parse_tensor(tensor: dict[str, Any], feature: Feature, signature: Signature, *, field: str) -> Tensor:
    expected = feature_shape(feature, signature)
    shape = _parse_shape(tensor.get("shape"), expected, field=f"{field}.shape")
    allowed = _datatypes(feature)
    if tensor.get("datatype") not in allowed:
        raise InputError(
            "wrong_datatype", f"{field}.datatype", f"{field}.datatype must be {allowed[0]}, got another one."
        )
    if "data" not in tensor:
        raise InputError("missing_field", f"{field}.data", f"{field}.data must be given, got no such field.")
    return _parse_data(tensor["data"], shape, feature, field=f"{field}.data")


def _parse_shape(shape: Any, expected: tuple[int, ...], *, field: str) -> list[int]:
    wanted = str(["B", *expected]).replace("'", "")
    if not isinstance(shape, list) or any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise InputError("wrong_shape", field, f"{field} must be {wanted}, got no list of whole numbers.")
    # many servers' clients send a category as [B, 1]
    if shape[1:] != list(expected) and not (expected == () and shape[1:] == [1]):
        raise InputError("wrong_shape", field, f"{field} must be {wanted}, got {str(shape)[:60]}.")
    if not shape or not 1 <= shape[0] <= MAX_SAMPLES:
        raise InputError(
            "wrong_size", field, f"{field} must begin with 1 to {MAX_SAMPLES} samples, got another number."
        )
    return [shape[0], *expected]


def _parse_data(data: Any, shape: list[int], feature: Feature, *, field: str) -> Tensor:
    if isinstance(feature, CategoricalFeature):
        values = _category_texts(data, shape[0], field=field)
        return torch.tensor(
            [category_index(value, feature, field=f"{field}[{i}]") for i, value in enumerate(values)],
            dtype=torch.int64,
        )
    nested = isinstance(data, list) and bool(data) and isinstance(data[0], list)
    numbers = flat_numbers(data, shape if nested else [math.prod(shape)], field=field)
    if isinstance(feature, ImageFeature):
        return image_tensor(numbers, shape, field=field)
    return torch.tensor(numbers, dtype=torch.float32).reshape(shape)


def _category_texts(data: Any, size: int, *, field: str) -> list[str]:
    if not isinstance(data, list) or len(data) != size:
        raise InputError("wrong_shape", field, f"{field} must be a list of {size} texts, got something else.")
    values = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in data]
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError("wrong_type", f"{field}[{index}]", f"{field}[{index}] must be text, got something else.")
    return values


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
