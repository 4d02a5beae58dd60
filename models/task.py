"""What a network is asked for: its loss, its metrics, and how its outputs become answers, for each kind of target."""

# B = batch, K = classes, T = horizon, C = channels

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.features import BoxesTarget, ClassTarget, ForecastTarget, NumberTarget, Signature
from models.inputs import forecast_parts

Sums = dict[str, Tensor]


class Task(nn.Module):
    """One kind of question. Without parameters; a module only so that its statistics follow the network's device."""

    num_outputs: int
    """Numbers that the body answers per sample."""
    sum_names: tuple[str, ...]
    """Keys of `metric_sums`, in their order."""

    @abstractmethod
    def arrange(self, outputs_BO: Tensor) -> Tensor:
        """Return the body's outputs in the target's shape."""

    @abstractmethod
    def loss_sum(self, outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the loss summed over the batch, and averaged over a sample's own numbers, as float32.

        Args:
            outputs: what the network returned: logits, or standardized numbers.
            target: raw values, as in a batch.
            label_smoothing: share of the probability spread over all classes.

        Raises:
            ValueError: if labels are to be smoothed where there are none.
        """

    @abstractmethod
    def metric_sums(self, outputs: Tensor, target: Tensor) -> Sums:
        """Return what `metrics` needs, as float64 sums over the batch that may be added over batches."""

    @abstractmethod
    def metrics(self, sums: Mapping[str, Tensor | float], count: int) -> dict[str, float]:
        """Return the metrics of ``count`` samples, `loss` and the target's `primary_metric` among them."""

    @abstractmethod
    def decode(self, outputs: Tensor) -> Tensor:
        """Return what a user wants: probabilities, or numbers in their own units."""


class Classification(Task):
    """Which class? Outputs are logits_BK; the answer is a probability for each."""

    sum_names = ("loss", "correct")

    def __init__(self, target: ClassTarget) -> None:
        super().__init__()
        self.num_outputs = len(target.classes)

    def arrange(self, outputs_BO: Tensor) -> Tensor:
        """Return logits_BK."""
        return outputs_BO

    def loss_sum(self, outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the summed cross entropy."""
        return F.cross_entropy(outputs.float(), target, label_smoothing=label_smoothing, reduction="sum")

    def metric_sums(self, outputs: Tensor, target: Tensor) -> Sums:
        """Return the cross entropy and the number of right answers."""
        return {
            "loss": self.loss_sum(outputs, target).double(),
            "correct": (outputs.argmax(1) == target).sum(dtype=torch.float64),
        }

    def metrics(self, sums: Mapping[str, Tensor | float], count: int) -> dict[str, float]:
        """Return loss and accuracy."""
        return {"loss": float(sums["loss"]) / count, "accuracy": float(sums["correct"]) / count}

    def decode(self, outputs: Tensor) -> Tensor:
        """Return probabilities_BK."""
        return outputs.float().softmax(1)


class Regression(Task):
    """How much? Outputs are standardized; the answer is in the target's unit, within the range seen in training."""

    num_outputs = 1
    sum_names = ("loss", "squared_error", "absolute_error")

    def __init__(self, target: NumberTarget) -> None:
        super().__init__()
        self.mean, self.std = target.mean, target.std or 1.0
        self.minimum, self.maximum = target.minimum, target.maximum

    def arrange(self, outputs_BO: Tensor) -> Tensor:
        """Return numbers_B."""
        return outputs_BO.squeeze(1)

    def loss_sum(self, outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the summed squared error, in standardized units."""
        _refuse_label_smoothing(label_smoothing, kind="number")
        return (outputs.float() - (target - self.mean) / self.std).square().sum()

    def metric_sums(self, outputs: Tensor, target: Tensor) -> Sums:
        """Return the loss, and the errors of the clipped answers in the target's unit."""
        error = (self.decode(outputs) - target).double()
        return {
            "loss": self.loss_sum(outputs, target).double(),
            "squared_error": error.square().sum(),
            "absolute_error": error.abs().sum(),
        }

    def metrics(self, sums: Mapping[str, Tensor | float], count: int) -> dict[str, float]:
        """Return loss, rmse and mae."""
        return {
            "loss": float(sums["loss"]) / count,
            "rmse": (float(sums["squared_error"]) / count) ** 0.5,
            "mae": float(sums["absolute_error"]) / count,
        }

    def decode(self, outputs: Tensor) -> Tensor:
        """Return numbers_B in the target's unit."""
        return (outputs.float() * self.std + self.mean).clamp(self.minimum, self.maximum)


class Forecasting(Task):
    """What comes next? Outputs are standardized y_BTC; metrics are too, as usual in the ETT literature."""

    sum_names = ("squared_error", "absolute_error")
    mean: Tensor
    std: Tensor

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        _, series, target = forecast_parts(signature)
        self.horizon, self.num_channels = target.horizon, len(series.channels)
        self.num_outputs = self.horizon * self.num_channels
        self.register_buffer("mean", torch.tensor(series.mean), persistent=False)
        self.register_buffer("std", torch.tensor([s or 1.0 for s in series.std]), persistent=False)

    def arrange(self, outputs_BO: Tensor) -> Tensor:
        """Return y_BTC."""
        return outputs_BO.reshape(-1, self.horizon, self.num_channels)

    def loss_sum(self, outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the squared error, averaged over steps and channels and summed over samples."""
        _refuse_label_smoothing(label_smoothing, kind="forecast")
        return self._error(outputs, target).square().mean((1, 2)).sum()

    def metric_sums(self, outputs: Tensor, target: Tensor) -> Sums:
        """Return squared and absolute error, averaged over steps and channels."""
        error = self._error(outputs, target).double()
        return {
            "squared_error": error.square().mean((1, 2)).sum(),
            "absolute_error": error.abs().mean((1, 2)).sum(),
        }

    def metrics(self, sums: Mapping[str, Tensor | float], count: int) -> dict[str, float]:
        """Return loss, mse (the same here) and mae."""
        mse = float(sums["squared_error"]) / count
        return {"loss": mse, "mse": mse, "mae": float(sums["absolute_error"]) / count}

    def decode(self, outputs: Tensor) -> Tensor:
        """Return y_BTC in the series' own units."""
        return outputs.float() * self.std + self.mean

    def _error(self, outputs: Tensor, target: Tensor) -> Tensor:
        return outputs.float() - (target - self.mean) / self.std


def task_of(signature: Signature) -> Task:
    """Return the task of the signature's target.

    Raises:
        ValueError: if it is boxes.
    """
    match signature.target:
        case ClassTarget():
            return Classification(signature.target)
        case NumberTarget():
            return Regression(signature.target)
        case ForecastTarget():
            return Forecasting(signature)
        case BoxesTarget():
            raise ValueError(
                "target must be a class, a number or a forecast, got boxes. No model of this version detects objects; "
                "a dataset with boxes can be pushed, shown and streamed"
            )


def _refuse_label_smoothing(label_smoothing: float, *, kind: str) -> None:
    if label_smoothing:
        raise ValueError(
            f"train.label_smoothing must be 0 for a target that is a {kind}, got {label_smoothing}. Remove it"
        )
