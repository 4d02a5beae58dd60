"""A factorization machine: each pair of fields interacts through the product of their factors (Rendle 2010)."""

# B = batch, F = fields with a row of their own, D = numbers, O = outputs, E = factors, X = O·E

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import FMConfig, ResolvedTechniques
from models.inputs import FieldInput, Fields
from models.techniques import Dropout, Initializer, empty_table

PAIRWISE_VARIANCE = 1e-4  # of the pairwise term at the start: 1 % of a standardized target, deviation to deviation
NORM_EPS = 1e-9  # far below the variance of a factor's interactions at the start, PAIRWISE_VARIANCE / E


class FM(nn.Module):
    """A bias, a weight for each field, and the factors' products over all pairs of fields; one FM for each output.

    With the `layers` regularization, the pairs' sum per factor (the bi-interaction) goes through batch norm and
    dropout before it is added up (NFM without hidden layers, He and Chua 2017).

    Shape:
        (index_BF, value_BF, x_BD) -> outputs_BO
    """

    def __init__(
        self, config: FMConfig, techniques: ResolvedTechniques, inputs: FieldInput, *, num_outputs: int
    ) -> None:
        super().__init__()
        self.num_outputs, self.num_factors = num_outputs, config.factors
        self.num_fields, self.num_index_rows = inputs.num_fields, inputs.num_index_rows
        self.unseen_rows = inputs.unseen_rows
        num_columns = num_outputs * config.factors
        self.bias_O = nn.Parameter(torch.empty(num_outputs))
        self.weights = empty_table(inputs.num_rows, num_outputs)
        self.factors = empty_table(inputs.num_rows, num_columns)
        regularized = techniques.regularization == "layers"
        self.norm = nn.BatchNorm1d(num_columns, eps=NORM_EPS) if regularized else nn.Identity()
        self.dropout = Dropout(config.dropout if regularized else 0.0)

    def initialize(self, initializer: Initializer) -> None:
        """Set every weight. Rows of unseen values are 0: such a value adds nothing until training meets it."""
        num_pairs = max(1, self.num_fields * (self.num_fields - 1) // 2)
        initializer.table(self.weights, std=0.0)  # as libFM (Rendle 2012)
        initializer.table(self.factors, std=(PAIRWISE_VARIANCE / (num_pairs * self.num_factors)) ** 0.25)
        for table in (self.weights, self.factors):
            table.weight.detach()[list(self.unseen_rows)] = 0.0
        self.bias_O.detach().zero_()
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.reset_parameters()
            # Its scale stands in for NFM's output weights.
            nn.init.constant_(self.norm.weight, (PAIRWISE_VARIANCE / self.num_factors) ** 0.5)

    def forward(self, fields: Fields) -> Tensor:
        """Return outputs_BO."""
        weights_BFO, weights_DO = self._rows(self.weights, fields)
        linear_BO = weights_BFO.sum(1) + fields.x_BD @ weights_DO
        pairs_BX: Tensor = self.dropout(self.norm(self._interact(fields)))
        return self.bias_O + linear_BO + pairs_BX.reshape(-1, self.num_outputs, self.num_factors).sum(-1)

    def _interact(self, fields: Fields) -> Tensor:
        """Return Σ v_i·x_i·v_j·x_j over all pairs i < j of fields, for each factor of each output."""
        v_BFX, v_DX = self._rows(self.factors, fields)
        sum_BX = v_BFX.sum(1) + fields.x_BD @ v_DX
        sum_of_squares_BX = v_BFX.square().sum(1) + fields.x_BD.square() @ v_DX.square()
        return 0.5 * (sum_BX.square() - sum_of_squares_BX)  # Rendle 2010, Lemma 3.1: O(F·E), not O(F²·E)

    def _rows(self, table: nn.Embedding, fields: Fields) -> tuple[Tensor, Tensor]:
        """Return each field's row of the table times its value, and the rows of all numbers."""
        rows_BFX = F.embedding(fields.index_BF, table.weight)
        if fields.value_BF is not None:
            rows_BFX = rows_BFX * fields.value_BF.unsqueeze(2)
        return rows_BFX, table.weight[self.num_index_rows :]
