"""What a model reads and answers: the kinds of input features and targets. Imports pydantic only.

A batch is a mapping from feature name to a tensor of raw values; normalization happens inside the network, with
the statistics of the training split that are kept here, so that training and serving cannot disagree.

    kind          tensor in a batch                          dtype
    image         [B, C, H, W], 0..255                       uint8
    vector        [B, D]                                     float32
    categorical   [B], 0 is "never seen in training"         int64
    series        [B, T, C], T = lookback                    float32
    target        class: [B] int64 · number: [B] float32 · series (forecast): [B, horizon, C] float32

The target's key in a batch is ``TARGET``.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

TARGET = "target"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageFeature(_Frozen):
    """A picture of fixed size, stored as raw bytes in C, H, W order."""

    kind: Literal["image"] = "image"
    shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    """Per channel, on the 0..255 scale."""
    std: tuple[float, ...]


class VectorFeature(_Frozen):
    """A row of numbers."""

    kind: Literal["vector"] = "vector"
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class CategoricalFeature(_Frozen):
    """One of a known set of values. Index 0 stands for every value that training never saw."""

    kind: Literal["categorical"] = "categorical"
    vocabulary: tuple[str, ...]
    """Value of index 1, 2, ...; index 0 is not listed."""

    @property
    def size(self) -> int:
        """Number of indices, the one for unseen values included."""
        return len(self.vocabulary) + 1


class SeriesFeature(_Frozen):
    """Several numbers that change over time; a sample is a window of it."""

    kind: Literal["series"] = "series"
    channels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


Feature = Annotated[ImageFeature | VectorFeature | CategoricalFeature | SeriesFeature, Field(discriminator="kind")]


class ClassTarget(_Frozen):
    """One of a fixed list of classes; the model answers with a probability for each."""

    kind: Literal["class"] = "class"
    classes: tuple[str, ...]


class NumberTarget(_Frozen):
    """One number; answers are clipped to the range seen in training."""

    kind: Literal["number"] = "number"
    mean: float
    std: float
    minimum: float
    maximum: float


class ForecastTarget(_Frozen):
    """The next ``horizon`` steps of the series feature itself."""

    kind: Literal["forecast"] = "forecast"
    lookback: int = Field(gt=0)
    """Steps that the model reads."""
    horizon: int = Field(gt=0)
    """Steps that it predicts."""


Target = Annotated[ClassTarget | NumberTarget | ForecastTarget, Field(discriminator="kind")]


class Signature(_Frozen):
    """Everything about the data that a network's shape and meaning depend on."""

    features: dict[str, Feature]
    """In the order of their names: networks concatenate them, and JSON may come back with its keys in another order."""
    target: Target

    @field_validator("features")
    @classmethod
    def _in_one_order(cls, features: dict[str, Feature]) -> dict[str, Feature]:
        return dict(sorted(features.items()))
