"""Recurrent nets that read a window of a series, a text or a sound, step by step, and answer from their states."""

# B = batch, T = time steps, C = channels, S = segments, H = hidden units, O = outputs

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ResolvedTechniques, RNNConfig
from models.features import PADDING, UNKNOWN
from models.inputs import FrameInput, Steps, TokenInput, WindowInput
from models.techniques import Dropout, Initializer, empty_table

EMBEDDING_STD = 0.1  # small, for a rare word gets few updates: of 0.02 to 1, this and less learned sentiment well
GATED_CELLS: Mapping[str, Callable[..., nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class RNN(nn.Module):
    """[A linear layer per segment, or an embedding]; recurrent layers; [batch norm], [dropout]; a linear layer.

    The linear layer reads the last state of a series, all of whose channels are read and forecast together, but the
    mean of the real states of a text or a sound: it learns sentiment and spoken digits in fewer epochs than the last
    state, to the same accuracy or better. Padding has no influence.

    Reading `segment` time steps at once shortens the recurrence, which is faster and easier to learn (SegRNN, Lin et
    al. 2023).

    Shape:
        x_BTC or tokens_BT, length_B -> outputs_BO
    """

    def __init__(
        self,
        config: RNNConfig,
        techniques: ResolvedTechniques,
        inputs: WindowInput | TokenInput | FrameInput,
        *,
        num_outputs: int,
    ) -> None:
        super().__init__()
        _check_segment(config, inputs)
        regularized = techniques.regularization == "layers"
        self.segment = config.segment
        hidden = config.hidden_size
        self.embedding = _embedding(config, inputs)
        sizes = [_step_size(config, inputs), *[hidden] * (config.layers - 1)]
        self.layers = nn.ModuleList([_recurrent_layer(size, config, techniques) for size in sizes])
        self.norm = nn.BatchNorm1d(hidden) if regularized else nn.Identity()
        self.dropout = Dropout(config.dropout if regularized else 0.0)
        self.head = nn.Linear(hidden, num_outputs)

    def initialize(self, initializer: Initializer) -> None:
        """Set every weight and bias. Padding and unknown words are 0: they say nothing until training meets some."""
        if isinstance(self.embedding, nn.Linear):
            initializer.linear(self.embedding)
        elif isinstance(self.embedding, nn.Embedding):
            initializer.table(self.embedding, std=EMBEDDING_STD)
            self.embedding.weight.detach()[[PADDING, UNKNOWN]] = 0.0
        for layer in self.layers:
            assert isinstance(layer, nn.RNNBase)
            initializer.recurrent(layer)
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.reset_parameters()
        initializer.linear(self.head)

    def forward(self, steps: Steps) -> Tensor:
        """Return outputs_BO."""
        states_BSH = self._embed(steps.x)
        for i, layer in enumerate(self.layers):
            states_BSH, _ = layer(states_BSH if i == 0 else self.dropout(states_BSH))
        summary_BH = states_BSH[:, -1] if steps.length_B is None else self._mean(states_BSH, steps.length_B)
        outputs_BO: Tensor = self.head(self.dropout(self.norm(summary_BH)))
        return outputs_BO

    def _embed(self, x: Tensor) -> Tensor:
        """Return what the first recurrent layer reads."""
        if isinstance(self.embedding, nn.Embedding):
            words_BTH: Tensor = self.dropout(self.embedding(x))
            return words_BTH
        x_BTC = F.pad(x, (0, 0, 0, -x.shape[1] % self.segment))
        B, T, _ = x_BTC.shape
        segments_BSX = x_BTC.reshape(B, T // self.segment, -1)  # X = time steps of a segment times channels
        embedded: Tensor = self.embedding(segments_BSX)
        return embedded

    def _mean(self, states_BSH: Tensor, length_B: Tensor) -> Tensor:
        """Return the mean of each sample's real states, and 0 for a sample without any."""
        length_B1 = (length_B.unsqueeze(1) + self.segment - 1) // self.segment
        real_BS = torch.arange(states_BSH.shape[1], device=length_B.device) < length_B1
        return (states_BSH * real_BS.unsqueeze(2)).sum(1) / length_B1.clamp(min=1)


def _check_segment(config: RNNConfig, inputs: WindowInput | TokenInput | FrameInput) -> None:
    if isinstance(inputs, WindowInput) and inputs.lookback % config.segment:
        raise ValueError(
            f"model.segment must divide data.lookback ({inputs.lookback}), got {config.segment}. "
            "Choose a divisor, or 1 to read step by step"
        )
    if isinstance(inputs, TokenInput) and config.segment != 1:
        raise ValueError(
            f"model.segment must be 1 for a text, which is read word by word, got {config.segment}. Remove it"
        )


def _embedding(config: RNNConfig, inputs: WindowInput | TokenInput | FrameInput) -> nn.Module:
    if isinstance(inputs, TokenInput):
        return empty_table(inputs.num_tokens, config.hidden_size)
    if config.segment > 1:
        return nn.Linear(config.segment * inputs.num_channels, config.hidden_size)
    return nn.Identity()


def _step_size(config: RNNConfig, inputs: WindowInput | TokenInput | FrameInput) -> int:
    """Numbers that the first recurrent layer reads at a step."""
    if isinstance(inputs, TokenInput) or config.segment > 1:
        return config.hidden_size
    return inputs.num_channels


def _recurrent_layer(input_size: int, config: RNNConfig, techniques: ResolvedTechniques) -> nn.RNNBase:
    if config.cell != "simple":
        return GATED_CELLS[config.cell](input_size, config.hidden_size, batch_first=True)
    if techniques.activation not in ("tanh", "relu"):
        raise ValueError(
            "techniques.activation must be tanh or relu for model.type rnn with cell simple, "
            f"got {techniques.activation!r}. Choose one of them"
        )
    return nn.RNN(input_size, config.hidden_size, nonlinearity=techniques.activation, batch_first=True)
