"""Pieces of a source whose rows tell their number, so that a test sees where each has gone."""

from dataclasses import dataclass

import numpy as np

from models.features import TARGET
from orchestrator.data.columns import Columns, Ragged


@dataclass(frozen=True)
class Numbers:
    """Rows of a text and its class, made anew each time they are read."""

    start: int
    rows: int
    class_rows: int | None = None
    """Neighbours that have a class in common; ``None``: the two classes alternate."""
    source_bytes: int = 100

    def read(self) -> Columns:
        ids = range(self.start, self.start + self.rows)
        words = [np.arange(2, 2 + i % 5, dtype=np.int32) + i for i in ids]
        labels = [i // self.class_rows if self.class_rows else i % 2 for i in ids]
        return {"text": Ragged.of(words, dtype=np.int32), TARGET: np.array(labels)}
