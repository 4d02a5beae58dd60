"""The baseline equals a direct computation on the stored data."""

from typing import Any

import numpy as np
import pytest

from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.data.reading.reader import Reader
from orchestrator.training.baseline import baseline
from tests.fake_store import MemoryStore


def scored(source: str, *, season: int | None = None, **window: int) -> Any:
    store: Any = MemoryStore()
    push(store, source)
    (name,) = store.folders("datasets/")
    dataset = open_dataset(store, name.strip("/"))
    signature = dataset.signature(**window)
    return baseline(Reader(dataset, signature), signature, split="test", season=season), signature


@pytest.mark.parametrize(("season", "name"), [(12, "the last 12 steps again"), (None, "the last step again")])
def test_a_forecast_repeats_the_last_season(season: int | None, name: str) -> None:
    from statsmodels.datasets import elnino

    found, signature = scored("statsmodels:elnino", season=season, lookback=24, horizon=18)
    series = elnino.load_pandas().data.drop(columns="YEAR").to_numpy(np.float32).ravel()
    test = series[-(732 - 512 - 74 + 24) :]
    feature = signature.features["series"]
    test = (test - feature.mean[0]) / feature.std[0]
    errors = []
    for start in range(len(test) - 24 - 18 + 1):
        before, after = test[start : start + 24], test[start + 24 : start + 42]
        guess = np.resize(before[-(season or 1) :], 18)
        errors.append(np.mean((guess - after) ** 2))
    assert found.name == name
    assert found.metrics["mse"] == pytest.approx(np.mean(errors), rel=1e-3)


def test_a_number_is_guessed_by_the_training_mean() -> None:
    found, signature = scored("sklearn:china")
    assert found.name == "the mean of the training split"
    assert found.metrics["rmse"] == pytest.approx(signature.target.std, rel=0.05)


def test_classes_have_none() -> None:
    assert scored("sklearn:digits")[0] is None
