"""All of it on a laptop in two minutes: push, train, sweep, deploy and query, on data that comes with the packages."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster import local
from cluster.process.typed import typed
from cluster.s3.store import Store
from cluster.session import ray_session
from orchestrator.commands.terminal import err
from orchestrator.configfile import load_experiment
from orchestrator.data.push import push
from orchestrator.data.sources.bundles import PHOTO_SIDE, china_photo, pixel_fields, split_pixels
from orchestrator.reporting.words import metrics_line
from orchestrator.sweep import sweep
from orchestrator.sweeping.record import SweepResult
from orchestrator.train import RunResult, train
from serving import deploy, registry
from serving.client import Client

SOURCES = ("sklearn:digits", "statsmodels:elnino", "sklearn:china")
RECIPES = ("digits-cnn", "digits-mlp", "elnino-rnn", "china-fm")
SERVED = {"digits": "digits-cnn", "elnino": "elnino-rnn", "china": "china-fm"}
"""Name of the model -> recipe whose run becomes its first version."""
SWEEP = "digits-techniques"
PICTURE = "orchestrator-demo-restored.png"
PIXELS_PER_QUESTION = 1024  # the most that an endpoint takes at once

Report = dict[str, Any]


def run_demo(*, keep: bool = False) -> Report:
    """Run every step, printing each as it ends; return what happened.

    Args:
        keep: leave the local cluster and the endpoints running. Those that ran before are left in any case.

    Returns:
        ``started`` (whether the cluster was started here), ``seconds`` by step, test metrics by model (``digits_cnn``,
        …), ``runs``, ``sweep``, ``queries`` with their answers, ``endpoint``, ``store`` and ``next`` commands.
    """
    report: Report = {"seconds": {}}
    with _cluster(report, keep=keep) as (store, address), ray_session(address, store=store.settings, serves=True):
        for source in SOURCES:
            with _step(report, f"push {source}") as say:
                manifest = push(store, source).manifest
                say(", ".join(f"{split.rows:,} {name} rows" for name, split in manifest.splits.items()))
        runs = {recipe: _train(report, recipe, store, address) for recipe in RECIPES}
        _sweep(report, store, address)
        for name, recipe in SERVED.items():
            with _step(report, f"deploy {name}") as say:
                registry.promote(store, run=runs[recipe].run, name=name)
                endpoint = deploy.deploy(store, name=name, port=0)
                say(f"{endpoint.version} at {endpoint.predict_url}")
        with _step(report, "query") as say:
            report["queries"] = _queries(Client(endpoint.url))
            say("; ".join(f"{query['ask']}: {query['answer']}" for query in report["queries"]))
        if not keep and not report["started"]:  # a cluster that was started here ends with all that it serves
            for name in SERVED:
                deploy.undeploy(name)
        report["runs"] = {recipe: result.run for recipe, result in runs.items()}
        report["endpoint"] = endpoint.url
        report["store"] = f"{store.settings.url} at {store.settings.endpoint_url}"
    report["next"] = [typed(*words) for words in _next(report, keep=keep)]
    return report


@contextmanager
def _cluster(report: Report, *, keep: bool) -> Iterator[tuple[Store, str]]:
    """The local cluster: what runs already is used and left; what is started here is ended, unless kept."""
    before = local.status()
    report["started"] = not (before.ray and before.ray.running() and before.store and before.store.running())
    with _step(report, "up") as say:
        state = local.up()
        assert state.ray is not None
        assert state.store is not None
        say(f"Ray at {state.ray.address}, store at {state.store.settings.endpoint_url}")
    try:
        yield Store(state.store.settings), state.ray.address
    finally:
        if report["started"] and not keep:
            with _step(report, "down") as say:
                say(f"{len(local.down())} servers ended; the data stay in the local store")


@contextmanager
def _step(report: Report, name: str) -> Iterator[Any]:
    """Time a step and print it with what it says of itself."""
    words: list[str] = []
    started = time.perf_counter()
    with err.status(name) if err.is_terminal else _quiet():
        yield words.append
    seconds = time.perf_counter() - started
    report["seconds"][name] = round(seconds, 2)
    err.print(f"{seconds:5.1f}s {name}", style="bold", end="  ")
    err.print("; ".join(words))


@contextmanager
def _quiet() -> Iterator[None]:
    yield


def _train(report: Report, recipe: str, store: Store, address: str) -> RunResult:
    with _step(report, f"train {recipe}") as say:
        result = train(load_experiment(recipe), store=store, address=address)
        record = result.record
        beside = f" ({record.baseline}: {metrics_line(record.baseline_metrics)})" if record.baseline else ""
        say(f"{record.parameters:,} parameters; test: {metrics_line(result.metrics)}{beside}")
    name = recipe.replace("-", "_")
    report[name] = result.metrics
    if record.baseline:
        report[f"{name}_baseline"] = record.baseline_metrics
    return result


def _sweep(report: Report, store: Store, address: str) -> SweepResult:
    with _step(report, f"sweep {SWEEP}") as say:
        result = sweep(load_experiment(SWEEP), store=store, address=address)
        ledger = result.ledger
        say(f"{len(result.cells)} trainings; {f'winner {ledger.winner}' if ledger.winner else 'no clear winner'}")
    report["sweep"] = {"name": result.sweep, "winner": ledger.winner, "reason": ledger.reason, "arms": ledger.arms}
    return result


def _queries(client: Client) -> list[dict[str, Any]]:
    """One real question to each model, with the truth beside the answer."""
    return [_ask_digit(client), _ask_series(client), _restore(client)]


def _ask_digit(client: Client) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    answer = client.predict("digits", _png((digits.images[-1] * 255 / 16).round().astype(np.uint8)))
    best = answer["prediction"]["top"][0]
    truth = str(digits.target[-1])
    return {
        "model": "digits",
        "ask": f"a picture of a handwritten {truth}",
        "answer": f"{best['class']} ({best['probability']:.1%})",
        "truth": truth,
    }


def _ask_series(client: Client) -> dict[str, Any]:
    from statsmodels.datasets import elnino

    months = elnino.load_pandas().data.drop(columns="YEAR").to_numpy(np.float32).ravel()
    answer = client.predict("elnino", {"series": [[float(x)] for x in months[-48:-12]]})
    forecast = [step["temperature"] for step in answer["prediction"]["forecast"]]
    return {
        "model": "elnino",
        "ask": "sea temperature of the next 12 months after 36",
        "answer": " ".join(f"{x:.1f}" for x in forecast) + " °C",
        "truth": " ".join(f"{x:.1f}" for x in months[-12:]) + " °C",
    }


def _restore(client: Client) -> dict[str, Any]:
    """Ask for every lost pixel of the photo, and save the photo as it was left and as it came back."""
    photo = china_photo(PHOTO_SIDE)
    _, lost = split_pixels(PHOTO_SIDE, seed=0)
    rows = (lost[:, None] * 3 + np.arange(3)).ravel()
    fields = {name: ids[rows].astype(str) for name, ids in pixel_fields(PHOTO_SIDE).items()}
    samples = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    answers = [
        prediction["value"]
        for start in range(0, len(samples), PIXELS_PER_QUESTION)
        for prediction in client.predict("china", samples[start : start + PIXELS_PER_QUESTION])["predictions"]
    ]
    left, restored = photo.copy().ravel(), photo.copy().ravel()
    left[rows] = 0
    restored[rows] = np.rint(answers)
    error = (restored[rows].astype(float) - photo.ravel()[rows]) ** 2
    both = np.hstack([left.reshape(photo.shape), restored.reshape(photo.shape)])
    Path(PICTURE).write_bytes(_png(both.repeat(4, 0).repeat(4, 1)))
    return {
        "model": "china",
        "ask": f"the {len(lost):,} lost pixels of a photo",
        "answer": f"{10 * np.log10(255**2 / error.mean()):.1f} dB PSNR, see {PICTURE}",
        "truth": "the photo itself",
    }


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


def _next(report: Report, *, keep: bool) -> list[tuple[str, ...]]:
    begin = [("predict", "digits", "PICTURE.png")] if keep else [("up",), ("deploy", "digits")]
    return [*begin, ("report", report["sweep"]["name"]), ("runs",), ("recipes",)]
