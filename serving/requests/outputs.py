"""Turns a network's answer into JSON that a person can read.

B = batch, K = classes, H = horizon, C = channels
"""

from typing import Any

from torch import Tensor

from models.features import (
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    ForecastTarget,
    NumberTarget,
    SeriesFeature,
    Signature,
)
from models.preparing.rows import filled_columns
from serving.requests.inputs import Batch
from serving.requests.values import InputError

TOP = 5


def describe_answers(output: Tensor, batch: Batch, signature: Signature) -> list[dict[str, Any]]:
    """One JSON object per sample.

    Args:
        output: class: probabilities [B, K]; number: [B]; forecast: [B, H, C].
        batch: what was asked; categories that training never saw are named in ``unseen``.
        signature: says which of these it is.

    Raises:
        InputError: if an answer is not finite, which inputs near the limits of float32 can cause.
    """
    require_finite(output)
    answers = [_describe(row, signature) for row in output]
    for name in unseen_fields(batch, signature):
        for answer, index in zip(answers, batch[name].tolist(), strict=True):
            if index == 0:
                answer.setdefault("unseen", []).append(name)
    return answers


def name_filled(answers: list[dict[str, Any]], request: Any, signature: Signature) -> None:
    """Say in each answer, as ``filled``, which columns of its row had no value and were filled as the dataset does.

    Args:
        answers: of `describe_answers`.
        request: the parsed JSON that was asked, one sample or a list of them; None for a file.
        signature: of the model.
    """
    rows = request if isinstance(request, list) else [request]
    for answer, row in zip(answers, rows, strict=True):
        if signature.rows and isinstance(row, dict) and signature.is_row(row.keys()):
            filled = filled_columns(row, signature.rows)
            if filled:
                answer["filled"] = filled


def require_finite(output: Tensor) -> None:
    """Refuse an answer that JSON cannot hold.

    Raises:
        InputError: if any number is NaN or infinite.
    """
    if not bool(output.isfinite().all()):
        raise InputError("no_finite_answer", None, "the inputs must lead to a finite answer, got NaN or infinity.")


def unseen_fields(batch: Batch, signature: Signature) -> list[str]:
    """Names of the categorical features that hold a value which training never saw, in some sample."""
    categorical = [name for name, f in signature.features.items() if isinstance(f, CategoricalFeature)]
    return [name for name in categorical if bool((batch[name] == 0).any())]


def _describe(row: Tensor, signature: Signature) -> dict[str, Any]:
    match signature.target:
        case ClassTarget(classes=classes):
            return _describe_class(row, classes)
        case NumberTarget():
            return {"value": row.item()}
        case ForecastTarget():
            channels = series_channels(signature)
            return {"forecast": [dict(zip(channels, step, strict=True)) for step in row.tolist()]}
        case BoxesTarget():
            raise AssertionError("no model answers with boxes")
    raise AssertionError(f"no model answers {signature.target.kind}")


def _describe_class(probability_K: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    best = probability_K.topk(min(TOP, len(classes)))
    top = [
        {"class": classes[index], "probability": probability}
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return {**top[0], "top": top}


def series_channels(signature: Signature) -> tuple[str, ...]:
    """Channel names of the series that a forecast model reads and predicts."""
    return next(f.channels for f in signature.features.values() if isinstance(f, SeriesFeature))
