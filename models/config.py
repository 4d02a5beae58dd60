"""Settings of the networks and of the techniques they are built with. Imports pydantic only."""

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, model_validator

from models.records import Settings

Activation = Literal["tanh", "relu", "leaky_relu", "elu", "gelu", "silu"]
Initialization = Literal["constant", "normalized"]
Regularization = Literal["none", "penalty", "layers"]
Gradient = Literal["batch", "stochastic"]
Processor = Literal["cpu", "gpu"]
Preset = Literal["traditional", "deep"]

MOST_LAYERS = 100  # hidden layers, blocks or recurrent layers
MOST_UNITS = 65_536  # of a layer; the largest published nets of these kinds have 4,096

Units = Annotated[int, Field(gt=0, le=MOST_UNITS)]
Layers = Annotated[tuple[Units, ...], FailFast(), Field(min_length=1, max_length=MOST_LAYERS)]


class _Network(Settings):
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of units dropped in training; used when `techniques.regularization` is `layers`."""
    initial_std: float = Field(default=0.05, gt=0)
    """Standard deviation of every initial weight; used when `techniques.initialization` is `constant`."""


class MLPConfig(_Network):
    """A feed-forward net on vectors, flattened pictures or flattened windows of a series."""

    type: Literal["mlp"]
    """`mlp`, `cnn`, `rnn` or `fm`."""
    hidden: Layers = (256, 128)
    """Units of each hidden layer."""


class CNNConfig(_Network):
    """Convolution blocks, each followed by 2x2 max pooling, then a linear classifier."""

    type: Literal["cnn"]
    channels: Layers = (32, 64, 128)
    """Output channels of each block; every block halves height and width, down to 1."""
    residual: bool = False
    """Add a residual pair of convolutions after every second block, as ResNet-9 does; the first block then keeps
    height and width."""


class RNNConfig(_Network):
    """A recurrent net that forecasts a series, or classifies or rates a text or a sound."""

    type: Literal["rnn"]
    cell: Literal["simple", "gru", "lstm"] = "gru"
    """`simple` has an activation to choose; the gates of `gru` and `lstm` fix theirs."""
    hidden_size: Units = 64
    """Units of each recurrent layer, and numbers that stand for a word."""
    layers: int = Field(default=1, gt=0, le=MOST_LAYERS)
    """Recurrent layers, one on top of the other."""
    segment: int = Field(default=1, gt=0, le=MOST_UNITS)
    """Time steps read at once through a linear layer, as SegRNN does; must divide `data.lookback`. A day or half a
    day of an hourly series (24, 12) is faster and more accurate than 1. A step of a sound is 10 ms, one of a text is a
    word, which is read by itself."""


class FMConfig(_Network):
    """A factorization machine (Rendle 2010) on categorical and numeric fields and on sparse rows."""

    type: Literal["fm"]
    factors: Units = 16
    """Length of each field value's factor vector."""


ModelConfig = Annotated[MLPConfig | CNNConfig | RNNConfig | FMConfig, Field(discriminator="type")]

PRESETS: dict[Preset, dict[str, str]] = {
    "traditional": {
        "activation": "tanh",
        "initialization": "constant",
        "regularization": "penalty",
        "gradient": "batch",
        "processor": "cpu",
    },
    "deep": {
        "activation": "relu",
        "initialization": "normalized",
        "regularization": "layers",
        "gradient": "stochastic",
        "processor": "gpu",
    },
}


class Techniques(Settings):
    """The choice between a traditional and a deep-learning form of each technique.

    `techniques: deep` in a file stands for `techniques: {preset: deep}`. A choice left out comes from the preset;
    the preset's processor is used where the cluster has it, one that is named is required.
    """

    preset: Preset = "deep"
    """Where every choice that is left out comes from."""
    activation: Activation | None = None
    """Hidden units' nonlinearity: tanh is traditional."""
    initialization: Initialization | None = None
    """`constant`: the same standard deviation in every layer; `normalized`: Glorot, He or orthogonal by layer."""
    regularization: Regularization | None = None
    """`penalty`: L1 and L2 on the weights; `layers`: dropout and batch normalization."""
    gradient: Gradient | None = None
    """`batch`: one update from the whole epoch's gradient; `stochastic`: one per mini-batch."""
    processor: Processor | None = None
    """`gpu`: one per worker. The preset `deep` takes it where the cluster has enough."""

    @model_validator(mode="before")
    @classmethod
    def _preset_by_name(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value


class ResolvedTechniques(Settings):
    """The form of every technique that a model is built with; `None` where the model has no such technique."""

    activation: Activation | None
    initialization: Initialization
    regularization: Regularization
    gradient: Gradient
    processor: Processor

    @property
    def not_applicable(self) -> tuple[str, ...]:
        """Names of the techniques that the model does not have."""
        return ("activation",) if self.activation is None else ()


def has_activation(model: MLPConfig | CNNConfig | RNNConfig | FMConfig) -> bool:
    """Whether the model has hidden units whose nonlinearity can be chosen."""
    return not (isinstance(model, FMConfig) or (isinstance(model, RNNConfig) and model.cell != "simple"))


def resolve_techniques(
    techniques: Techniques, model: MLPConfig | CNNConfig | RNNConfig | FMConfig, *, gpu_available: bool
) -> ResolvedTechniques:
    """Fill what was left out from the preset, and drop what the model does not have.

    Raises:
        ValueError: if a technique is named that the model does not have.
    """
    chosen = dict(PRESETS[techniques.preset])
    chosen |= {k: v for k, v in techniques.model_dump(exclude={"preset"}).items() if v is not None}
    if techniques.processor is None and not gpu_available:
        chosen["processor"] = "cpu"
    if has_activation(model):
        return ResolvedTechniques.model_validate(chosen)
    if techniques.activation is not None:
        kind = f"{model.type} with cell {model.cell}" if isinstance(model, RNNConfig) else model.type
        raise ValueError(
            f"techniques.activation must be left out for model.type {kind}, which has no hidden activation to "
            f"choose, got {techniques.activation!r}. Remove it, or choose another model"
        )
    return ResolvedTechniques.model_validate(chosen | {"activation": None})
