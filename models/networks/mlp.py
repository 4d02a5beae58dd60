"""A feed-forward net: linear layers with an activation between them."""

# B = batch, D = inputs, O = outputs

from torch import Tensor, nn

from models.config import MLPConfig, ResolvedTechniques
from models.inputs import FlatInput
from models.techniques import ACTIVATIONS, Dropout, Initializer


class MLP(nn.Module):
    """`hidden` layers of linear, [batch norm], activation, [dropout]; then a linear layer.

    Shape:
        x_BD -> outputs_BO
    """

    def __init__(
        self, config: MLPConfig, techniques: ResolvedTechniques, inputs: FlatInput, *, num_outputs: int
    ) -> None:
        super().__init__()
        assert techniques.activation is not None
        regularized = techniques.regularization == "layers"
        layers: list[nn.Module] = []
        size = inputs.size
        for units in config.hidden:
            layers.append(nn.Linear(size, units, bias=not regularized))  # batch norm has its own bias
            layers += [nn.BatchNorm1d(units)] if regularized else []
            layers.append(ACTIVATIONS[techniques.activation]())
            layers += [Dropout(config.dropout)] if regularized else []
            size = units
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(size, num_outputs)

    def initialize(self, initializer: Initializer) -> None:
        """Set every weight and bias."""
        for layer in self.hidden:
            if isinstance(layer, nn.Linear):
                initializer.hidden(layer)
            elif isinstance(layer, nn.BatchNorm1d):
                layer.reset_parameters()
        initializer.linear(self.head)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return outputs_BO."""
        outputs_BO: Tensor = self.head(self.hidden(x_BD))
        return outputs_BO
