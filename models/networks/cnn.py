"""Convolutional nets for pictures: a plain one, and the small residual one known as ResNet-9."""

# B = batch, C = channels, H = height, W = width, O = outputs

from torch import Tensor, nn
from torch.nn import functional as F

from models.config import CNNConfig, ResolvedTechniques
from models.inputs import ImageInput
from models.techniques import ACTIVATIONS, Dropout, Initializer

LOGIT_SCALE = 0.125  # keeps the softmax soft early on, so that high learning rates work (Page 2018, DAWNBench ResNet-9)


class CNN(nn.Module):
    """Blocks of convolution, [batch norm], activation and pooling; the maximum over the plane; a linear layer.

    With `residual` it is ResNet-9 (Page 2018): the first block keeps the plane's size, and each second block is
    followed by a residual pair of convolutions; `channels: [64, 128, 256, 512]` gives the published net.

    Shape:
        x_BCHW -> outputs_BO
    """

    def __init__(
        self, config: CNNConfig, techniques: ResolvedTechniques, inputs: ImageInput, *, num_outputs: int
    ) -> None:
        super().__init__()
        self.residual = config.residual
        size, height, width = inputs.shape
        blocks: list[nn.Module] = []
        for i, channels in enumerate(config.channels):
            halve = min(height, width) > 1 and not (config.residual and i == 0)
            blocks.append(Block(size, channels, techniques, halve=halve))
            if config.residual and i % 2 == 1:
                blocks.append(ResidualPair(channels, techniques))
            height, width = (height // 2, width // 2) if halve else (height, width)
            size = channels
        self.blocks = nn.Sequential(*blocks)
        self.dropout = Dropout(config.dropout if techniques.regularization == "layers" else 0.0)
        self.head = nn.Linear(size, num_outputs)

    def initialize(self, initializer: Initializer) -> None:
        """Set every weight and bias."""
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Conv2d):
                initializer.hidden(layer)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()
        initializer.linear(self.head)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return outputs_BO."""
        y_BCHW = self.blocks(x_BCHW)
        # Not adaptive_max_pool2d, whose gradient on a GPU differs from run to run.
        maximum_BC = F.max_pool2d(y_BCHW, y_BCHW.shape[-2:]).flatten(1)
        outputs_BO: Tensor = self.head(self.dropout(maximum_BC))
        return outputs_BO * LOGIT_SCALE if self.residual else outputs_BO


class Block(nn.Module):
    """A 3x3 convolution, [2x2 max pooling], [batch norm], and the activation.

    Pooling comes before the activation, as in airbench (Jordan 2024): the same for a rising activation without
    batch norm, and less to compute.

    Shape:
        x_BCHW -> y_BCHW with the new number of channels, H and W halved with ``halve``
    """

    def __init__(self, in_channels: int, out_channels: int, techniques: ResolvedTechniques, *, halve: bool) -> None:
        super().__init__()
        assert techniques.activation is not None
        normalized = techniques.regularization == "layers"
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not normalized)
        self.pool = nn.MaxPool2d(2) if halve else nn.Identity()
        self.norm = nn.BatchNorm2d(out_channels) if normalized else nn.Identity()
        self.activation = ACTIVATIONS[techniques.activation]()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BCHW."""
        y_BCHW: Tensor = self.activation(self.norm(self.pool(self.convolution(x_BCHW))))
        return y_BCHW


class ResidualPair(nn.Module):
    """Two blocks whose result is added to what they read. Shape: x_BCHW -> y_BCHW, the same."""

    def __init__(self, channels: int, techniques: ResolvedTechniques) -> None:
        super().__init__()
        self.first = Block(channels, channels, techniques, halve=False)
        self.second = Block(channels, channels, techniques, halve=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return y_BCHW."""
        return x_BCHW + self.second(self.first(x_BCHW))  # type: ignore[no-any-return]
