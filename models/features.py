"""What a model reads and answers: the kinds of input features and targets. Imports pydantic only.

A batch is a mapping from feature name to a tensor of raw values; normalization happens inside the network, with
the statistics of the training split that are kept here, so that training and serving cannot disagree.

    kind          tensor in a batch                          dtype
    image         [B, C, H, W], 0..255                       uint8
    vector        [B, D]                                     float32
    categorical   [B], 0 is "never seen in training"         int64
    series        [B, T, C], T = lookback                    float32
    text          [B, T], 0 is padding, 1 an unknown word    int64
    audio         [B, T], -1..1, padded with 0               float32
    sparse        [B, T], 0 is padding; and its values       int64; float32
    target        class: [B] int64 · number: [B] float32 · series (forecast): [B, horizon, C] float32 ·
                  boxes: [B, N, 5] float32, padded with -1

The target's key in a batch is ``TARGET``. Of text, audio, sparse and boxes, a sample has as many as it has: they are
padded to the longest of the batch, and ``NAME.length`` [B] int64 says how many are real. The values of a sparse
feature are ``NAME.value``.
"""

from collections.abc import Mapping, Set
from typing import Annotated, ClassVar, Literal

from pydantic import FailFast, Field, field_validator, model_validator

from models.preparing.rows import RowSchema
from models.preparing.steps import TimeStep
from models.records import Frozen

HIGHER_IS_BETTER: Mapping[str, bool] = {"accuracy": True, "loss": False, "rmse": False, "mse": False, "mae": False}
"""Each metric of an evaluation, and whether the higher of two values is the better one."""

TARGET = "target"
LENGTH = ".length"
VALUE = ".value"
PADDING, UNKNOWN = 0, 1
"""Tokens that stand for no word."""

MOST_CLASSES = 100_000  # five times ImageNet's largest set; the last layer has a row for each
MOST_COLUMNS = 10_000  # of numbers in a table or a series; what has more is sparse
MOST_WORDS = 1_000_000  # of a vocabulary; each has a row of an embedding or of factors
MOST_CHANNELS = 16  # of a picture; satellites have 13
MOST_PIXELS = 64_000_000  # of a picture, as `models/pictures.py` decodes

Numbers = Annotated[tuple[float, ...], FailFast(), Field(max_length=MOST_COLUMNS)]
Columns = Annotated[tuple[str, ...], FailFast(), Field(min_length=1, max_length=MOST_COLUMNS)]
Words = Annotated[tuple[str, ...], FailFast(), Field(max_length=MOST_WORDS)]
Classes = Annotated[tuple[str, ...], FailFast(), Field(min_length=1, max_length=MOST_CLASSES)]
Side = Annotated[int, Field(gt=0, le=MOST_PIXELS)]


class ImageFeature(Frozen):
    """A picture; a batch has all of them in one size."""

    kind: Literal["image"] = "image"
    encoding: Literal["raw", "file"] = "raw"
    """How it is stored: as raw bytes in C, H, W order, or as the JPEG or PNG file that it was, of any size."""
    shape: tuple[Side, Side, Side]
    """Channels, height, width in a batch; a file is scaled to it when it is read."""
    mean: Numbers
    """Per channel, on the 0..255 scale."""
    std: Numbers

    @model_validator(mode="after")
    def _pixels_are_few(self) -> "ImageFeature":
        channels, height, width = self.shape
        if channels > MOST_CHANNELS or height * width > MOST_PIXELS:
            raise ValueError(
                f"shape must be 1 to {MOST_CHANNELS} channels of at most {MOST_PIXELS:,} pixels, got {self.shape}"
            )
        return self


class VectorFeature(Frozen):
    """A row of numbers."""

    kind: Literal["vector"] = "vector"
    names: Columns
    mean: Numbers
    std: Numbers
    offset: Numbers = ()
    """What was subtracted from each number, in 64 bits, before it was stored in 32; empty if from none. Mean and std
    are of what is stored."""

    @model_validator(mode="after")
    def _offsets_are_complete(self) -> "VectorFeature":
        if self.offset and len(self.offset) != len(self.names):
            raise ValueError(f"offset must be as long as names ({len(self.names)}) or empty, got {len(self.offset)}")
        return self

    @property
    def offsets(self) -> tuple[float, ...]:
        """What is subtracted from each number."""
        return self.offset or (0.0,) * len(self.names)


class CategoricalFeature(Frozen):
    """One of a known set of values. Index 0 stands for every value that training never saw."""

    kind: Literal["categorical"] = "categorical"
    vocabulary: Words
    """Value of index 1, 2, ...; index 0 is not listed."""

    @property
    def size(self) -> int:
        """Number of indices, the one for unseen values included."""
        return len(self.vocabulary) + 1


class Clock(Frozen):
    """When the rows of a series are, and how its file says it."""

    dates: Columns
    """Columns of the date; of several, all fields together are one. One that has no name is an empty text."""
    order: Literal["day-first", "month-first"] | None = None
    """Of dates such as 1/2/2016."""
    item: str | None = None
    """Column that says which of many series a row belongs to."""
    step: TimeStep
    """Between most rows and the next."""
    gaps: Literal["refuse", "keep", "interpolate", "split"] = "refuse"
    """What becomes of missing rows: there may be none; nothing; a straight line; or no window crosses them."""
    decimal: Literal["point", "comma"] = "point"
    """What stands before the decimals of a number in a file."""
    thousands: Literal["", ",", ".", " ", "'"] = ""
    """What stands between the thousands."""


class SeriesFeature(Frozen):
    """Several numbers that change over time; a sample is a window of it."""

    kind: Literal["series"] = "series"
    channels: Columns
    mean: Numbers
    std: Numbers
    missing: Literal["refuse", "drop", "interpolate"] = "refuse"
    """What becomes of a field without a value: there may be none, its row is left out, or a straight line."""
    clock: Clock | None = None
    """Of a series without dates, nothing is known."""


Tokens = Literal["words", "characters"]
"""What a text is split into, see `models/text.py`."""


class TextFeature(Frozen):
    """Words or characters, as `models/text.py` splits a text."""

    kind: Literal["text"] = "text"
    vocabulary: Words
    """Word or character of token 2, 3, ...; see `PADDING` and `UNKNOWN`."""
    max_tokens: int = Field(gt=0, le=2**20)
    """Those after it are left out."""
    tokens: Tokens = "words"

    @property
    def size(self) -> int:
        """Number of tokens, padding and unknown included."""
        return len(self.vocabulary) + 2


class AudioFeature(Frozen):
    """A sound with one channel."""

    kind: Literal["audio"] = "audio"
    sample_rate: int = Field(gt=0, le=2**20)
    """Samples per second."""
    max_samples: int = Field(gt=0, lt=2**31)
    """The longest sound; what is longer is cut."""
    resampled: bool = False
    """Whether a sound of another rate is resampled; otherwise it is refused."""


class SparseFeature(Frozen):
    """A long row of numbers that are 0 but for a few."""

    kind: Literal["sparse"] = "sparse"
    columns: int = Field(gt=0, lt=2**31)
    """Length of the row. Column i, counted from 0, has index i + 1 in a batch, since 0 is padding."""


Feature = Annotated[
    ImageFeature | VectorFeature | CategoricalFeature | SeriesFeature | TextFeature | AudioFeature | SparseFeature,
    Field(discriminator="kind"),
]


class ClassTarget(Frozen):
    """One of a fixed list of classes; the model answers with a probability for each."""

    primary_metric: ClassVar = "accuracy"
    """The metric that decides between two models; so in the other targets."""
    higher_is_better: ClassVar = True
    kind: Literal["class"] = "class"
    classes: Classes


class NumberTarget(Frozen):
    """One number; answers are clipped to the range seen in training."""

    primary_metric: ClassVar = "rmse"
    higher_is_better: ClassVar = False
    kind: Literal["number"] = "number"
    mean: float
    std: float
    minimum: float
    maximum: float


class BoxesTarget(Frozen):
    """The objects in a picture: class, left, top, right, bottom of each, as shares of the picture's sides."""

    primary_metric: ClassVar = "mean_average_precision"
    higher_is_better: ClassVar = True
    kind: Literal["boxes"] = "boxes"
    classes: Classes


class ForecastTarget(Frozen):
    """The next ``horizon`` steps of the series feature itself."""

    primary_metric: ClassVar = "mse"
    higher_is_better: ClassVar = False
    kind: Literal["forecast"] = "forecast"
    lookback: int = Field(gt=0, le=2**20)
    """Steps that the model reads."""
    horizon: int = Field(gt=0, le=2**20)
    """Steps that it predicts."""


Target = Annotated[ClassTarget | NumberTarget | ForecastTarget | BoxesTarget, Field(discriminator="kind")]


class Signature(Frozen):
    """Everything about the data that a network's shape and meaning depend on."""

    features: dict[str, Feature]
    """In the order of their names: networks concatenate them, and JSON may come back with its keys in another order."""
    target: Target
    rows: RowSchema | None = None
    """How a row of the source becomes these features, if it has named columns."""

    @field_validator("features")
    @classmethod
    def _in_one_order(cls, features: dict[str, Feature]) -> dict[str, Feature]:
        return dict(sorted(features.items()))

    def is_row(self, names: Set[str]) -> bool:
        """Whether what has these names is a row of the source: they are its columns, and not only features."""
        if self.rows is None:
            return False
        return names <= self.rows.columns.keys() or not names <= self.features.keys()
