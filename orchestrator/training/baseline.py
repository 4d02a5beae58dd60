"""What a prediction without any learning scores on the same samples: the least that a model must beat."""

from typing import NamedTuple

import torch
from torch import Tensor

from models.features import TARGET, ForecastTarget, NumberTarget, Signature
from models.inputs import forecast_parts
from models.task import task_of
from orchestrator.data.reading.reader import Reader


class Baseline(NamedTuple):
    """A prediction rule and its metrics."""

    name: str
    metrics: dict[str, float]


def baseline(reader: Reader, signature: Signature, *, split: str, season: int | None) -> Baseline | None:
    """Score the usual rule: the training mean for a number, the last season again for a forecast.

    Args:
        reader: of the dataset.
        signature: what is predicted.
        split: whose samples to score.
        season: steps after which a series repeats; ``None`` repeats the last step.

    Returns:
        ``None`` where classes are predicted.
    """
    if not isinstance(signature.target, ForecastTarget | NumberTarget):
        return None
    task = task_of(signature)
    sums: dict[str, Tensor] = {}
    count = 0
    with torch.inference_mode():
        for _, batch in reader.evaluate_batches(split, worker=0, workers=1, batch_size=1024):
            outputs = _guess(batch.tensors, signature, season=season or 1)
            for name, value in task.metric_sums(outputs, batch.tensors[TARGET]).items():
                sums[name] = sums.get(name, torch.zeros(())) + value
            count += batch.size
    return Baseline(_name(signature, season or 1), task.metrics(sums, count))


def _name(signature: Signature, season: int) -> str:
    if isinstance(signature.target, NumberTarget):
        return "the mean of the training split"
    return "the last step again" if season == 1 else f"the last {season} steps again"


def _guess(batch: dict[str, Tensor], signature: Signature, *, season: int) -> Tensor:
    """The rule's answers, standardized as a network's outputs are."""
    if isinstance(signature.target, NumberTarget):
        return torch.zeros(len(batch[TARGET]))  # the mean
    name, series, target = forecast_parts(signature)
    last_BSC = batch[name][:, -season:]
    repeats = -(-target.horizon // last_BSC.shape[1])
    answer_BTC = last_BSC.repeat(1, repeats, 1)[:, : target.horizon]
    std_C = torch.tensor([value or 1.0 for value in series.std])
    return (answer_BTC - torch.tensor(series.mean)) / std_C
