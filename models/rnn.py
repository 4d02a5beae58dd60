"""Recurrent nets that read a window of a series and forecast the whole horizon from the last state."""

# B = batch, T = time steps, C = channels, S = segments, H = hidden units, O = outputs

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from models.config import ResolvedTechniques, RNNConfig
from models.inputs import WindowInput
from models.techniques import Dropout, Initializer

GATED_CELLS: Mapping[str, Callable[..., nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class RNN(nn.Module):
    """[A linear layer per segment]; recurrent layers; [batch norm], [dropout]; a linear layer on the last state.

    Reading `segment` time steps at once shortens the recurrence, which is faster and easier to learn (SegRNN, Lin et
    al. 2023). All channels are read and forecast together.

    Shape:
        x_BTC -> outputs_BO
    """

    def __init__(
        self, config: RNNConfig, techniques: ResolvedTechniques, inputs: WindowInput, *, num_outputs: int
    ) -> None:
        super().__init__()
        _check_segment(config, inputs)
        regularized = techniques.regularization == "layers"
        self.segment = config.segment
        hidden = config.hidden_size
        segment_size = config.segment * inputs.num_channels
        self.embedding = nn.Linear(segment_size, hidden) if config.segment > 1 else nn.Identity()
        sizes = [segment_size if config.segment == 1 else hidden, *[hidden] * (config.layers - 1)]
        self.layers = nn.ModuleList([_recurrent_layer(size, config, techniques) for size in sizes])
        self.norm = nn.BatchNorm1d(hidden) if regularized else nn.Identity()
        self.dropout = Dropout(config.dropout if regularized else 0.0)
        self.head = nn.Linear(hidden, num_outputs)

    def initialize(self, initializer: Initializer) -> None:
        """Set every weight and bias."""
        if isinstance(self.embedding, nn.Linear):
            initializer.linear(self.embedding)
        for layer in self.layers:
            assert isinstance(layer, nn.RNNBase)
            initializer.recurrent(layer)
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.reset_parameters()
        initializer.linear(self.head)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return outputs_BO."""
        B, T, _ = x_BTC.shape
        segments_BSX = x_BTC.reshape(B, T // self.segment, -1)  # X = time steps of a segment times channels
        states_BSH = self.embedding(segments_BSX)
        for i, layer in enumerate(self.layers):
            states_BSH, _ = layer(states_BSH if i == 0 else self.dropout(states_BSH))
        last_BH = self.dropout(self.norm(states_BSH[:, -1]))
        outputs_BO: Tensor = self.head(last_BH)
        return outputs_BO


def _check_segment(config: RNNConfig, inputs: WindowInput) -> None:
    if inputs.lookback % config.segment:
        raise ValueError(
            f"model.segment must divide data.lookback ({inputs.lookback}), got {config.segment}. "
            "Choose a divisor, or 1 to read step by step"
        )


def _recurrent_layer(input_size: int, config: RNNConfig, techniques: ResolvedTechniques) -> nn.RNNBase:
    if config.cell != "simple":
        return GATED_CELLS[config.cell](input_size, config.hidden_size, batch_first=True)
    if techniques.activation not in ("tanh", "relu"):
        raise ValueError(
            "techniques.activation must be tanh or relu for model.type rnn with cell simple, "
            f"got {techniques.activation!r}. Choose one of them"
        )
    return nn.RNN(input_size, config.hidden_size, nonlinearity=techniques.activation, batch_first=True)
