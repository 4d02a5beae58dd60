"""A client for deployed models: pictures, series, categories or JSON in, answers out."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from cluster.errors import ClusterError, ConfigError, NotFoundError, RunFailedError
from cluster.machine.files import read_file
from cluster.process.typed import typed
from cluster.s3.stored_json import require_bounded
from cluster.s3.urls import shown_url
from models.features import (
    AudioFeature,
    CategoricalFeature,
    ForecastTarget,
    ImageFeature,
    SeriesFeature,
    Signature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from models.preparing.rows import RowSchema
from serving.http.access import TOKEN_VARIABLE, read_token, read_url, token_path
from serving.requests.series import is_number, parse_series
from serving.requests.values import InputError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0  # the gateway gives up after 30
RETRY_BUDGET_S = 30.0
PAUSE_S = 0.25
MOST_ANSWER = 32 * 2**20  # bytes
MOST_INPUT = 32 * 2**20  # bytes of a file; the gateway takes no larger body
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe")


class Client:
    """Asks the models behind one URL.

    Asking changes nothing, so a question that met an overloaded, restarting or dying server is asked again for up to
    ``RETRY_BUDGET_S``.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        """Without ``url`` or ``token``, the environment's or those of the last deployment from here are used."""
        self.url = (url or read_url()).rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy or a .netrc entry must not see or replace the token
        if token := token or read_token():
            self._session.headers["Authorization"] = f"Bearer {token}"

    def predict(self, name: str, inputs: Any) -> dict[str, Any]:
        """Ask a model.

        Args:
            name: of the model.
            inputs: one sample ``{feature: value}`` or row of the source ``{column: value}``, a list of them, or the
                path or the bytes of a picture or a sound.

        Returns:
            ``model``, ``version``, ``weights_sha256``, and ``prediction`` or, for a list, ``predictions``.

        Raises:
            InputError: if the model refuses the inputs; with ``code`` and ``field``.
            NotFoundError: if no such model is deployed.
            ConfigError: if the token is refused.
            RunFailedError: if the server fails, or stays overloaded.
            ClusterError: if nothing answers at the URL, or something else than an endpoint.
        """
        path = f"/models/{name}/predict"
        if isinstance(inputs, Path):
            inputs = _read_file(inputs)
        if isinstance(inputs, bytes):
            return self._post(path, inputs, media_type=_file_type(inputs))
        return self._post(path, _json_body(inputs), media_type="application/json")

    def predict_words(self, name: str, words: Sequence[str]) -> dict[str, Any]:
        """Ask a model with the words of a command line, see `parse_inputs`. Raises as `predict` does."""
        return self.predict(name, parse_inputs(words, self.signature(name)))

    def infer(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask a model in the Open Inference Protocol v2. Raises as `predict` does."""
        return self._post(f"/v2/models/{name}/infer", _json_body(request), media_type="application/json")

    def models(self) -> list[dict[str, Any]]:
        """All models that answer: name, version, metrics, signature. Raises as `predict` does."""
        found = self._ask("GET", "/models").get("models")
        if not isinstance(found, list):
            raise self._no_endpoint("no list of models")
        return found

    def signature(self, name: str) -> Signature:
        """What a model reads and answers; long vocabularies are cut. Raises as `predict` does."""
        answer = self._ask("GET", f"/models/{quote(name, safe='')}")
        try:
            return Signature.model_validate(answer["signature"])
        except (ValueError, KeyError, TypeError):
            raise self._no_endpoint("a model without a signature") from None

    def _post(self, path: str, body: bytes, *, media_type: str) -> dict[str, Any]:
        return self._ask("POST", path, data=body, headers={"Content-Type": media_type})

    def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        deadline = time.monotonic() + RETRY_BUDGET_S
        while True:
            response = self._try(method, path, deadline=deadline, **arguments)
            if response is None or (response.status_code == 503 and time.monotonic() < deadline):
                time.sleep(min(_pause_s(response), max(0.0, deadline - time.monotonic())))
                continue
            if response.status_code != HTTPStatus.OK:
                raise _error(response, shown_url(self.url))
            try:
                return response.json()
            except ValueError as error:
                raise self._no_endpoint(error) from None

    def _body(self, response: requests.Response) -> bytes:
        """The body of an answer, as it comes: a server may send without end."""
        body = bytearray()
        for part in response.iter_content(MOST_ANSWER // 64):
            body += part
            if len(body) > MOST_ANSWER:
                raise self._no_endpoint(f"more than {MOST_ANSWER:,} bytes")
        return bytes(body)

    def _no_endpoint(self, found: object) -> ClusterError:
        return ClusterError(
            f"{shown_url(self.url)} must be an endpoint of orchestrator, got {found}. Check the address."
        )

    def _try(self, method: str, path: str, *, deadline: float, **arguments: Any) -> "_Answer | None":
        """The answer; ``None`` if the connection broke and there is time to try again."""
        address, patience = self.url + path, (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        ask = partial(self._session.request, timeout=patience, allow_redirects=False, stream=True)
        try:
            with ask(method, address, **arguments) as response:
                return _Answer(response.status_code, response.headers, self._body(response))
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            if time.monotonic() < deadline and not _is_refused(error):
                return None
            found = type(error).__name__
            raise ClusterError(
                f"an endpoint must answer at {shown_url(self.url)}, got {found}. Start it: `{typed('deploy', 'NAME')}`."
            ) from None


@dataclass(frozen=True)
class _Answer:
    """What a server has answered."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The object in the body; anything else is a ValueError."""
        require_bounded(self.body)
        found = json.loads(self.body.decode("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found


def answer_line(answer: Mapping[str, Any]) -> str:
    """An answer for people: one line for each sample, or for each step of a forecast.

    Raises:
        ClusterError: if it is no answer of a model.
    """
    try:
        predictions = answer["predictions"] if "predictions" in answer else [answer["prediction"]]
        return "\n".join(_prediction_line(prediction) for prediction in predictions)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ClusterError(
            "the endpoint must answer with predictions, got something else. Check the address."
        ) from None


def _prediction_line(prediction: Mapping[str, Any]) -> str:
    if "top" in prediction:
        line = "  ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in prediction["top"])
    elif "forecast" in prediction:
        steps = enumerate(prediction["forecast"], start=1)
        line = "\n".join(f"{i}: " + "  ".join(f"{k} {v:.5g}" for k, v in step.items()) for i, step in steps)
    else:
        line = f"{prediction['value']:.5g}"
    for key, note in (("unseen", "never seen in training"), ("filled", "not given, so filled")):
        if prediction.get(key):
            line += f"  ({note}: {', '.join(prediction[key])})"
    return line


def parse_inputs(words: Sequence[str], signature: Signature) -> Any:
    """Turn words of a command line into what `Client.predict` takes.

    A picture model takes one path of a PNG or JPEG file; a sound model that of a WAV file; a text model the text, or
    one path of a file ``*.txt`` that is there; a forecast one path of a CSV file, or its text, whose last rows are
    used; all others ``name=value`` pairs with the names of the source's columns, of which those may be left out that
    the dataset fills. A word that begins with ``{`` or ``[`` is JSON and is passed on as it is.

    Raises:
        ConfigError: if the words do not fit, saying what would.
    """
    if len(words) == 1 and words[0].lstrip()[:1] in ("{", "["):
        return _parse_json(words[0])
    features = signature.features
    only = next(iter(features.items())) if len(features) == 1 else None
    if only and isinstance(only[1], ImageFeature):
        return Path(_single(words, "the path of a PNG or JPEG file"))
    if only and isinstance(only[1], AudioFeature):
        return Path(_single(words, "the path of a WAV file"))
    if only and isinstance(only[1], TextFeature):
        text = " ".join(words).removeprefix(f"{_text_name(only[0], signature)}=")
        is_file = text.endswith(".txt") and Path(text).is_file()
        return {only[0]: _read_file(Path(text)).decode("utf-8", "replace") if is_file else text}
    if only and isinstance(only[1], SparseFeature):
        return {only[0]: _parse_columns(words)}
    if only and isinstance(only[1], SeriesFeature):
        assert isinstance(signature.target, ForecastTarget)
        text = _read_text(_single(words, "the path of a CSV file"))
        return {only[0]: parse_series(text, only[1], lookback=signature.target.lookback)}
    return _parse_pairs(words, signature)


def _text_name(feature: str, signature: Signature) -> str:
    """What a text is called in the source."""
    return next(iter(signature.rows.columns), feature) if signature.rows else feature


def _parse_columns(words: Sequence[str]) -> dict[str, float]:
    """The numbers of a sparse row, ``column=value`` each."""
    found = {}
    for word in words:
        column, _, value = word.partition("=")
        if not column.isdecimal() or not is_number(value):
            raise ConfigError(f"inputs must be given as COLUMN=NUMBER ..., columns counted from 0, got {word!r}.")
        found[column] = float(value)
    return found


def _parse_row(words: Sequence[str], schema: RowSchema) -> dict[str, str]:
    """A row of the source, as text: the model reads it as it read the file."""
    usage = " ".join(f"{name}=..." if name.isidentifier() else f"'{name}=...'" for name in [*schema.columns][:8])
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or (name not in schema.columns and name not in schema.ignored):
            raise ConfigError(f"inputs must be given as {usage}, got {word!r}.")
        found[name] = value
    return found


def _parse_pairs(words: Sequence[str], signature: Signature) -> dict[str, Any]:
    named = {word.partition("=")[0] for word in words}
    if signature.rows and signature.is_row(named):
        return _parse_row(words, signature.rows)
    owner = {
        number: name for name, f in signature.features.items() if isinstance(f, VectorFeature) for number in f.names
    }
    expected = [name for name, f in signature.features.items() if isinstance(f, CategoricalFeature)] + [*owner]
    usage = " ".join(f"{name}=..." for name in expected[:8])
    sample: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in expected:
            raise ConfigError(f"inputs must be given as {usage}, got {word!r}.")
        if key not in owner:
            sample[key] = value
        elif is_number(value):
            sample.setdefault(owner[key], {})[key] = float(value)
        else:
            raise ConfigError(f"{key} must be a number, got {value!r}.")
    return sample


def _single(words: Sequence[str], what: str) -> str:
    if len(words) != 1:
        raise ConfigError(f"inputs must be {what}, got {len(words)} words.")
    return words[0]


def _read_text(word: str) -> str:
    return word if "\n" in word else _read_file(Path(word)).decode("utf-8", "replace")


def _read_file(path: Path) -> bytes:
    return read_file(path, most_bytes=MOST_INPUT)


def _parse_json(word: str) -> Any:
    try:
        require_bounded(word.encode())
        return json.loads(word)
    except ValueError as error:
        raise ConfigError(f"inputs must be JSON when they begin with {{ or [, got: {error}.") from None


def _json_body(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except ValueError:
        raise InputError("out_of_range", None, "the inputs must be finite numbers, got NaN or infinity.") from None


def _file_type(content: bytes) -> str:
    kinds = {b"\x89PNG": "image/png", b"RIFF": "audio/wav"}
    return kinds.get(content[:4], "image/jpeg")


def _pause_s(response: _Answer | None) -> float:
    announced = response.headers.get("Retry-After", "") if response is not None else ""
    return float(announced) if announced.isdigit() else PAUSE_S


def _is_refused(error: requests.RequestException) -> bool:
    """Whether nothing listens there, as opposed to a connection that broke."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return type(reason).__name__ == "NewConnectionError"


def _error(response: _Answer, url: str) -> Exception:
    status = response.status_code
    if status == HTTPStatus.UNAUTHORIZED:
        return ConfigError(f"{url} must accept the token, got 401. Set {TOKEN_VARIABLE}, or check {token_path()}.")
    try:
        body = response.json()
        code, field, message = body["code"], body["field"], body["message"]
    except (ValueError, KeyError, TypeError):
        return ClusterError(f"{url} must be an endpoint of orchestrator, got HTTP {status}. Check the address.")
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(message)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InputError(code, field, message, status=status)
    return RunFailedError(message)
