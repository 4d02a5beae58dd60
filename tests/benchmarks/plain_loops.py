"""Training loops as a good user of PyTorch writes them, with none of our packages: what `steps.py` compares with.

The data are in memory as float32 tensors, normalized once; every epoch is shuffled by one permutation, batches are
slices of it. Each function returns a callable that trains one epoch and returns its number of steps.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

Epoch = Callable[[], int]


def digits_mlp(*, batch_size: int = 64, learning_rate: float = 0.05) -> Epoch:
    """The handwritten digits as 64 numbers; two hidden layers."""
    x, y = _digits()
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    return _epoch(model, optimizer, F.cross_entropy, x, y, batch_size=batch_size)


def digits_cnn(*, batch_size: int = 64, learning_rate: float = 0.05) -> Epoch:
    """The handwritten digits as pictures; two convolutions with pooling, then the maximum over the plane."""
    x, y = _digits()
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    return _epoch(model, optimizer, F.cross_entropy, x.view(-1, 1, 8, 8), y, batch_size=batch_size)


def elnino_rnn(*, batch_size: int = 32, learning_rate: float = 0.01) -> Epoch:
    """The sea's temperature: a GRU over three years, a year at a step, forecasts the next."""
    import statsmodels.api as sm

    table = sm.datasets.elnino.load_pandas().data
    series = torch.tensor(table.drop(columns="YEAR").to_numpy(np.float32).ravel())
    series = (series - series.mean()) / series.std()
    windows = series.unfold(0, 36 + 12, 1)
    windows = windows[: int(0.8 * len(windows))]
    x, y = windows[:, :36] - windows[:, 35:36], windows[:, 36:] - windows[:, 35:36]
    model = _Forecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    return _epoch(model, optimizer, F.mse_loss, x.contiguous(), y.contiguous(), batch_size=batch_size)


def china_fm(*, batch_size: int = 512, learning_rate: float = 0.02) -> Epoch:
    """Half of a photo's pixels: a factorization machine over row, column and channel."""
    picture = load_sample_image("china.jpg")[::4, ::4].astype(np.float32)
    places = np.stack(np.meshgrid(*(np.arange(size) for size in picture.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = np.cumsum([0, *picture.shape[:-1]])
    chosen = np.random.default_rng(0).permutation(len(places))[: len(places) // 2]
    index = torch.tensor((places + offsets)[chosen])
    value = torch.tensor(picture.reshape(-1)[chosen])
    value = (value - value.mean()) / value.std()
    model = _FM(sum(picture.shape), factors=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    return _epoch(model, optimizer, F.mse_loss, index, value, batch_size=batch_size)


class _Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru, self.head = nn.Linear(12, 32), nn.GRU(32, 32, batch_first=True), nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(x.view(-1, 3, 12)))
        forecast: Tensor = self.head(states[:, -1])
        return forecast


class _FM(nn.Module):
    def __init__(self, rows: int, *, factors: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.weights, self.factors = nn.Embedding(rows, 1), nn.Embedding(rows, factors)
        nn.init.zeros_(self.weights.weight)
        nn.init.normal_(self.factors.weight, std=0.05)

    def forward(self, index: Tensor) -> Tensor:
        v = self.factors(index)
        pairs = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
        answers: Tensor = self.bias + self.weights(index).sum((1, 2)) + pairs
        return answers


def _digits() -> tuple[Tensor, Tensor]:
    pictures, labels = load_digits(return_X_y=True)
    pictures, _, labels, _ = train_test_split(pictures, labels, test_size=0.2, random_state=0, stratify=labels)
    x = torch.tensor(pictures, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(labels)


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int,
) -> Epoch:
    model.train()

    def batches() -> Iterator[Tensor]:
        return iter(torch.randperm(len(x)).split(batch_size))

    def train() -> int:
        steps, total = 0, 0.0
        for chosen in batches():
            optimizer.zero_grad()
            loss = loss_of(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
            steps += 1
        return steps

    return train
