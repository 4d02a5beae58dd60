"""Small untrained models of every kind, and finished runs of them, for the tests of serving."""

import secrets
from typing import Any

from cluster.s3.store import Store
from models.config import CNNConfig, FMConfig, MLPConfig, ModelConfig, RNNConfig, Techniques, resolve_techniques
from models.features import (
    AudioFeature,
    CategoricalFeature,
    ClassTarget,
    ForecastTarget,
    ImageFeature,
    NumberTarget,
    SeriesFeature,
    Signature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from models.network import build
from orchestrator.runs.checkpoint import Progress, State, save_checkpoint
from orchestrator.runs.record import RunRecord, update_run
from tests.fake_store import MemoryStore

PICTURES = Signature(
    features={"image": ImageFeature(shape=(3, 8, 8), mean=(120.0,) * 3, std=(60.0,) * 3)},
    target=ClassTarget(classes=("cat", "dog", "frog")),
)
GREY = Signature(
    features={"image": ImageFeature(shape=(1, 8, 8), mean=(120.0,), std=(60.0,))},
    target=ClassTarget(classes=("zero", "one")),
)
TABLE = Signature(
    features={
        "size": VectorFeature(names=("length", "width"), mean=(5.0, 3.0), std=(1.0, 0.5)),
        "colour": CategoricalFeature(vocabulary=("red", "blue")),
    },
    target=ClassTarget(classes=("setosa", "virginica", "versicolor", "a", "b", "c")),
)
RATINGS = Signature(
    features={
        "user": CategoricalFeature(vocabulary=("196", "186", "22")),
        "item": CategoricalFeature(vocabulary=("242", "302")),
    },
    target=NumberTarget(mean=3.5, std=1.0, minimum=1.0, maximum=5.0),
)
SERIES = Signature(
    features={"series": SeriesFeature(channels=("load", "heat"), mean=(10.0, 0.0), std=(2.0, 1.0))},
    target=ForecastTarget(lookback=6, horizon=3),
)
TEXTS = Signature(
    features={"text": TextFeature(vocabulary=("a", "film", "fine", ",", "unknown"), max_tokens=5)},
    target=ClassTarget(classes=("bad", "good", "neither")),
)
SOUNDS = Signature(
    features={"sound": AudioFeature(sample_rate=8000, max_samples=1000)},
    target=ClassTarget(classes=("yes", "no")),
)
ROWS = Signature(
    features={"row": SparseFeature(columns=30)}, target=NumberTarget(mean=0.0, std=1.0, minimum=-9.0, maximum=9.0)
)
EXAMPLES: dict[str, tuple[ModelConfig, Signature]] = {
    "pictures": (CNNConfig(type="cnn", channels=(4, 4)), PICTURES),
    "table": (MLPConfig(type="mlp", hidden=(8,)), TABLE),
    "ratings": (FMConfig(type="fm", factors=4), RATINGS),
    "texts": (RNNConfig(type="rnn", hidden_size=8), TEXTS),
    "sounds": (RNNConfig(type="rnn", hidden_size=8), SOUNDS),
    "rows": (FMConfig(type="fm", factors=4), ROWS),
    "series": (RNNConfig(type="rnn", hidden_size=8), SERIES),
}


class JsonMemoryStore(MemoryStore):
    """The store in memory, with the two conveniences for JSON of the real one."""

    read_json = Store.read_json
    write_json = Store.write_json


def write_run(store: Any, *, run: str, kind: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Leave in the store what a finished training leaves; `changes` replace fields of its ``run.json``."""
    model, signature = EXAMPLES[kind]
    techniques = resolve_techniques(Techniques(initialization="constant"), model, gpu_available=False)
    network = build(model.model_copy(update={"initial_std": 0.5}), techniques, signature, seed=seed)
    progress = Progress(
        epoch=1, update=10, logical_workers=1, dataset_version="d1", environment={}, history=[{"loss": 0.5}]
    )
    state = State(weights=dict(network.state_dict()), optimizer={}, progress=progress)
    window = {"lookback": 6, "horizon": 3} if kind == "series" else {}
    record = {
        "run": run,
        "state": "finished",
        "created": "2026-11-22T10:00:00+00:00",
        "experiment": {
            "data": {"name": kind, **window},
            "model": model.model_dump(mode="json"),
            "train": {"epochs": 1, "learning_rate": 0.1},
        },
        "techniques": techniques.model_dump(mode="json"),
        "not_applicable": techniques.not_applicable,
        "signature": signature.model_dump(mode="json"),
        "dataset": {"name": kind, "version": "d1"},
        "evaluated_on": "test",
        "primary_metric": "accuracy",
        "higher_is_better": True,
        "code_version": "0.1.0",
        "versions": {"torch": "2.13.0"},
        "metrics": {"loss": 0.25, "accuracy": 0.5},
        "checkpoint": save_checkpoint(store, run=run, attempt=secrets.token_hex(4), state=state),
        **changes,
    }
    update_run(store, RunRecord.model_validate(record))
    return record
