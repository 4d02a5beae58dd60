"""Losses, metrics and answers of the three kinds of target."""

import pytest
import torch
from torch.nn import functional as F

from models.features import BoxesTarget, ClassTarget, ForecastTarget, NumberTarget, SeriesFeature, Signature
from models.task import Task, task_of

NUMBER = Signature(features={}, target=NumberTarget(mean=3.0, std=2.0, minimum=1.0, maximum=5.0))
CLASS = Signature(features={}, target=ClassTarget(classes=("a", "b", "c")))
FORECAST = Signature(
    features={"s": SeriesFeature(channels=("x", "y"), mean=(10.0, 0.0), std=(2.0, 0.0))},
    target=ForecastTarget(lookback=4, horizon=3),
)


def measured(task: Task, outputs: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    return task.metrics(task.metric_sums(outputs, target), len(target))


def test_classification_measures_loss_and_accuracy() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    target = torch.tensor([0, 1, 0, 0])
    task = task_of(CLASS)
    metrics = measured(task, logits, target)
    assert metrics == {"loss": pytest.approx(F.cross_entropy(logits, target).item()), "accuracy": 0.75}
    assert (CLASS.target.primary_metric, CLASS.target.higher_is_better) == ("accuracy", True)
    torch.testing.assert_close(task.decode(logits).sum(1), torch.ones(4))


def test_label_smoothing_enters_the_loss_and_not_the_metrics() -> None:
    logits, target = torch.randn(8, 3), torch.arange(8) % 3
    task = task_of(CLASS)
    smoothed = task.loss_sum(logits, target, label_smoothing=0.2)
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, target, label_smoothing=0.2) * 8)
    assert measured(task, logits, target)["loss"] == pytest.approx(F.cross_entropy(logits, target).item())


def test_regression_learns_in_standard_units_and_answers_in_raw_ones_within_the_range() -> None:
    task = task_of(NUMBER)
    outputs, target = torch.tensor([0.0, 0.5, 9.0]), torch.tensor([3.0, 3.0, 4.0])
    assert task.decode(outputs).tolist() == [3.0, 4.0, 5.0]
    assert task.loss_sum(outputs, target).item() == pytest.approx(0 + 0.25 + 8.5**2)
    metrics = measured(task, outputs, target)
    assert metrics["rmse"] == pytest.approx((2 / 3) ** 0.5)
    assert metrics["mae"] == pytest.approx(2 / 3)
    assert (NUMBER.target.primary_metric, NUMBER.target.higher_is_better) == ("rmse", False)


def test_forecasts_are_measured_in_standard_units_and_answered_in_raw_ones() -> None:
    task = task_of(FORECAST)
    outputs = torch.zeros(2, 3, 2)
    target = torch.tensor([12.0, 1.0]).expand(2, 3, 2)  # one standard deviation, and 1 of a series without any
    assert measured(task, outputs, target) == {"loss": 1.0, "mse": 1.0, "mae": 1.0}
    assert task.loss_sum(outputs, target).item() == 2.0
    assert torch.equal(task.decode(outputs + 1), torch.tensor([12.0, 1.0]).expand(2, 3, 2))
    assert (FORECAST.target.primary_metric, FORECAST.target.higher_is_better) == ("mse", False)


@pytest.mark.parametrize(("signature", "kind"), [(NUMBER, "number"), (FORECAST, "forecast")])
def test_label_smoothing_without_labels_is_refused(signature: Signature, kind: str) -> None:
    task = task_of(signature)
    outputs = task.arrange(torch.zeros(2, task.num_outputs))
    with pytest.raises(ValueError, match=f"label_smoothing must be 0 for a target that is a {kind}, got 0.1"):
        task.loss_sum(outputs, outputs, label_smoothing=0.1)


@pytest.mark.parametrize("signature", [NUMBER, CLASS, FORECAST], ids=["number", "class", "forecast"])
def test_sums_over_parts_give_the_metrics_of_the_whole(signature: Signature) -> None:
    task = task_of(signature)
    generator = torch.Generator().manual_seed(0)
    outputs = task.arrange(torch.randn(10, task.num_outputs, generator=generator))
    target = torch.arange(10) % 3 if signature is CLASS else 3 + outputs.flip(0)
    parts = [task.metric_sums(outputs[part], target[part]) for part in (slice(0, 3), slice(3, 10))]
    added = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert task.metrics(added, 10) == pytest.approx(measured(task, outputs, target))


@pytest.mark.parametrize("signature", [NUMBER, CLASS, FORECAST], ids=["number", "class", "forecast"])
def test_losses_of_half_precision_outputs_are_computed_in_float32(signature: Signature) -> None:
    task = task_of(signature)
    outputs = task.arrange(torch.randn(10, task.num_outputs)).bfloat16()
    target = torch.arange(10) % 3 if signature is CLASS else outputs.float()
    assert task.loss_sum(outputs, target).dtype == torch.float32
    assert task.decode(outputs).dtype == torch.float32


@pytest.mark.parametrize("signature", [NUMBER, CLASS, FORECAST], ids=["number", "class", "forecast"])
def test_a_task_adds_nothing_to_the_saved_weights(signature: Signature) -> None:
    assert task_of(signature).state_dict() == {}


def test_boxes_are_refused_since_no_model_detects_objects() -> None:
    with pytest.raises(ValueError, match=r"must be a class, a number or a forecast, got boxes\. No model .* detects"):
        task_of(Signature(features={}, target=BoxesTarget(classes=("cell",))))
