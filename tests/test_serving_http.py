"""The gateway over HTTP, with real models behind it in this process in place of Serve's replicas."""

import asyncio
import base64
import hashlib
import io
import json
import re
import wave
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import torch
from example_runs import EXAMPLES, JsonMemoryStore, write_run
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image
from schemathesis.checks import response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from models.network import example_batch
from serving import registry
from serving.app import Model, predict_together
from serving.http.access import token_sha256
from serving.http.failures import FAILURES
from serving.http.gateway import GatewaySettings, Kind, UnavailableError, create_app
from serving.requests.inputs import Batch
from serving.requests.protocol import output_tensor, request_of

TOKEN, OLD_TOKEN = "the-token", "the-token-before"
LIMIT = 200_000
URL = "http://127.0.0.1:8000"
PREDICT, INFER = "/models/table/predict", "/v2/models/table/infer"
GOOD = {"size": [5.0, 3.0], "colour": "red"}


class LocalModel(Model):
    """A replica outside Serve, which joins no requests."""

    async def _forward(self, batch: Batch) -> torch.Tensor:
        return predict_together(self._model, [batch])[0]


class LocalEndpoints:
    """Deployed models in this process; `failure` is raised in place of an answer, and those in `dead` do not answer."""

    def __init__(self) -> None:
        self.store = JsonMemoryStore()
        self.models: dict[str, Model] = {}
        self.failure: Exception | None = None
        self.dead: set[str] = set()
        for name in EXAMPLES:
            write_run(self.store, run=f"run-{name}", kind=name)
            registry.promote(self.store, run=f"run-{name}", name=name)
            self.models[name] = LocalModel(self.store, name, "v1")

    async def names(self) -> list[str]:
        return sorted(self.models)

    async def describe(self, name: str) -> dict[str, Any]:
        if name in self.dead:
            raise UnavailableError("unavailable", f"{name} must have a living replica, got none.", status=503)
        return await self.models[name].describe()

    async def ask(self, name: str, kind: Kind, content: bytes) -> tuple[int, dict[str, Any]]:
        if self.failure is not None:
            raise self.failure
        return await self.models[name].ask(kind, content)


@pytest.fixture(scope="module")
def endpoints() -> LocalEndpoints:
    return LocalEndpoints()


@pytest.fixture(scope="module")
def anonymous(endpoints: LocalEndpoints) -> Iterator[TestClient]:
    gateway = GatewaySettings(token_sha256=(token_sha256(TOKEN), token_sha256(OLD_TOKEN)), body_limit_bytes=LIMIT)
    with TestClient(create_app(gateway, endpoints), raise_server_exceptions=False, base_url=URL) as client:
        yield client


@pytest.fixture(scope="module")
def client(endpoints: LocalEndpoints, anonymous: TestClient) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(anonymous.app, raise_server_exceptions=False, base_url=URL, headers=headers) as c:
        yield c


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG")
    return file.getvalue()


def assert_refused(response: Any, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"code", "field", "message"}
    assert body["code"] == code and body["message"]
    for secret in ("Traceback", "site-packages", "/serving/", TOKEN):
        assert secret not in response.text


# ---- answers


def test_predict_answers_with_version_and_hash(client, endpoints):
    response = client.post("/models/table/predict", json=GOOD)
    version = registry.show(endpoints.store, name="table")
    body = response.json()
    assert response.status_code == 200
    assert (body["model"], body["version"], body["weights_sha256"]) == ("table", "v1", version.weights_sha256)
    assert response.headers["x-model-version"] == "v1"
    assert response.headers["x-weights-sha256"] == version.weights_sha256
    assert len(body["prediction"]["top"]) == 5


def test_a_list_is_answered_with_a_list(client):
    single = client.post("/models/table/predict", json=GOOD).json()["prediction"]
    several = client.post("/models/table/predict", json=[GOOD, {**GOOD, "colour": "never"}]).json()["predictions"]
    assert several[0]["class"] == single["class"]
    assert several[0]["probability"] == pytest.approx(single["probability"], abs=1e-6)
    assert several[1]["unseen"] == ["colour"]


def test_a_picture_is_answered_as_a_file_as_a_form_and_as_pixels(client):
    pixels = [[[value] * 8] * 8 for value in (1, 2, 3)]
    answers = [
        client.post("/models/pictures/predict", content=png(), headers={"Content-Type": "image/png"}),
        client.post("/models/pictures/predict", files={"file": ("x.png", png(), "image/png")}),
        client.post("/models/pictures/predict", json={"image": pixels}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({json.dumps(answer.json()["prediction"]) for answer in answers}) == 1


@pytest.mark.parametrize("kind", EXAMPLES)
def test_infer_answers_as_the_model_itself(client, endpoints, kind):
    signature = EXAMPLES[kind][1]
    batch = example_batch(signature, size=7, seed=5)
    response = client.post(f"/v2/models/{kind}/infer", json={"id": "q-1", **request_of(batch, signature)})
    body = response.json()
    loaded = registry.load(endpoints.store, name=kind, version="v1")
    torch.testing.assert_close(output_tensor(body["outputs"]), loaded.predict(batch), atol=1e-5, rtol=0)
    assert (body["id"], body["model_name"], body["model_version"]) == ("q-1", kind, "v1")
    assert body["parameters"]["weights_sha256"] == response.headers["x-weights-sha256"]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_requests_answered_in_one_pass_get_each_their_own_answer(endpoints, kind):
    model = registry.load(endpoints.store, name=kind, version="v1")
    batches = [example_batch(EXAMPLES[kind][1], size=size, seed=size) for size in (1, 3, 2)]
    for batch, answer in zip(batches, predict_together(model, batches), strict=True):
        torch.testing.assert_close(answer, model.predict(batch), atol=1e-5, rtol=0)


def test_models_and_servers_are_described(client):
    found = client.get("/models").json()
    models = found["models"]
    assert [model["name"] for model in models] == sorted(EXAMPLES) and found["unavailable"] == []
    assert client.get("/models/series").json() == models[3]
    assert models[3]["metrics"] == {"loss": 0.25, "accuracy": 0.5}
    assert client.get("/v2").json()["name"] == "orchestrator"
    described = client.get("/v2/models/series").json()
    assert described["inputs"] == [{"name": "series", "datatype": "FP32", "shape": [-1, 6, 2]}]
    assert (described["name"], described["versions"]) == ("series", ["v1"])
    assert client.get("/v2/models/series/ready").json() == {"name": "series", "ready": True, "version": "v1"}


def test_a_page_health_and_docs_need_no_token(anonymous):
    page = anonymous.get("/")
    assert page.status_code == 200 and "<title>Models</title>" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in page.text
    assert anonymous.get("/v2/health/live").json() == {"live": True}
    assert anonymous.get("/v2/health/ready").json() == {"ready": True}
    docs = anonymous.get("/docs")
    assert docs.status_code == 200 and "<code>POST /models/{name}/predict</code>" in docs.text
    assert "script" not in docs.text and "https://" not in docs.text
    assert "/v2/models/{name}/infer" in anonymous.get("/openapi.json").json()["paths"]


def test_a_page_runs_its_own_script_and_no_other(anonymous):
    page = anonymous.get("/")
    [script] = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page.headers["content-security-policy"]
    assert not re.search(r"<[^>]*\son[a-z]+=", page.text)  # no handler in the markup, which the policy would forbid
    assert "script-src 'none';" in anonymous.get("/docs").headers["content-security-policy"]


def test_no_answer_is_stored_guessed_or_embedded_by_a_browser(anonymous, client):
    for response in (client.get("/models"), anonymous.get("/models"), anonymous.get("/"), client.get("/nowhere")):
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_a_page_of_another_origin_reaches_nothing_even_with_the_token(client):
    for origin in ("http://evil.example", "http://127.0.0.1:3000", "null"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for answer in (client.post(PREDICT, json=GOOD, headers=headers), client.options(PREDICT, headers=headers)):
            assert_refused(answer, 403, "cross_origin")
            assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert client.post(PREDICT, json=GOOD, headers={"Origin": URL}).status_code == 200


def test_a_foreign_name_reaches_nothing_even_with_the_token(client, anonymous):
    for path in ("/", "/docs", "/openapi.json", "/v2/health/live", "/models", "/nowhere"):
        assert_refused(client.get(path, headers={"Host": "evil.example"}), 421, "wrong_host")
        assert_refused(anonymous.get(path, headers={"Host": "evil.example:8000"}), 421, "wrong_host")


# ---- what is promised


def test_every_route_describes_every_failure_in_one_form(anonymous):
    schema = anonymous.get("/openapi.json").json()
    operations = [operation for methods in schema["paths"].values() for operation in methods.values()]
    for operation in operations:
        assert {int(status) for status in operation["responses"]} == {200, *FAILURES}
        for status in FAILURES:
            content = operation["responses"][str(status)]["content"]
            assert content == {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}
    assert set(schema["components"]["schemas"]["Failure"]["required"]) == {"code", "field", "message"}
    open_paths = {path for path, methods in schema["paths"].items() if methods.get("get", {}).get("security") == []}
    assert open_paths == {"/v2/health/live", "/v2/health/ready"} and schema["security"] == [{"token": []}]


def test_any_request_that_the_description_allows_is_answered_as_described(described):
    """Requests made up from OpenAPI's description: no 500, and nothing that is not described."""

    seen: set[int] = set()

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=strategies.data())
    def ask(data: strategies.DataObject) -> None:
        for operation in described.get_all_operations():
            case = data.draw(operation.ok().as_strategy())
            if case.path_parameters:
                case.path_parameters["name"] = data.draw(strategies.sampled_from([*EXAMPLES, "nobody"]))
            answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code != 500, answer.text
            seen.add(answer.status_code)
            case.validate_response(answer, checks=[status_code_conformance, response_schema_conformance])

    ask()
    assert seen >= {200, 404, 422}


@pytest.fixture(scope="module")
def described(endpoints: LocalEndpoints) -> Any:
    gateway = GatewaySettings(token_sha256=(token_sha256(TOKEN),), allowed_hosts=("testserver",))
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(gateway, endpoints))


# ---- the token


@pytest.mark.parametrize("token", [TOKEN, OLD_TOKEN])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_valid_token_opens(anonymous, token, scheme):
    assert anonymous.get("/models", headers={"Authorization": f"{scheme} {token}"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/models", "/v2", "/v2/models/table", "/v2/models/table/ready", "/nowhere", "/models/"]
)
def test_every_other_path_needs_a_token(anonymous, path):
    response = anonymous.get(path)
    assert_refused(response, 401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", TOKEN)],
        [("Authorization", f"Basic {TOKEN}")],
        [("Authorization", f"Token {TOKEN}")],
        [("Authorization", "Bearer wrong")],
        [("Authorization", f"Bearer {TOKEN}x")],
        [("Authorization", f"Bearer {TOKEN[:-1]}")],
        [("Authorization", f"Bearer {TOKEN.upper()}")],
        [("Authorization", f"Bearer {token_sha256(TOKEN)}")],
        [("Authorization", f"Bearer{TOKEN}")],
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer wrong")],
        [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {TOKEN}")],
        [("Authorization", b"Bearer \xff\xfe")],
        [("X-Authorization", f"Bearer {TOKEN}")],
        [("Cookie", f"token={TOKEN}")],
    ],
)
def test_a_request_without_a_valid_token_is_refused(anonymous, headers):
    response = anonymous.post("/models/table/predict", content=json.dumps(GOOD), headers=headers)
    assert_refused(response, 401, "unauthorized")


def test_a_body_without_a_token_is_not_read(anonymous):
    scope_calls: list[str] = []

    async def receive() -> dict[str, Any]:
        scope_calls.append("read")
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/models/table/predict",
        "headers": [(b"host", b"127.0.0.1"), (b"content-length", b"9999999999")],
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
    }
    asyncio.run(anonymous.app(scope, receive, send))
    assert sent[0]["status"] == 401 and scope_calls == []


# ---- limits and bad requests


def test_an_announced_large_body_is_refused_unread(client):
    response = client.post("/models/table/predict", content=b"x" * (LIMIT + 1))
    assert_refused(response, 413, "too_large")


def test_a_streamed_large_body_is_refused_once_it_is_over_the_limit(client):
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(LIMIT // 1000 + 1):
            sent += 1000
            yield b"[" * 1000

    for path in ("/models/table/predict", "/v2/models/table/infer"):
        assert_refused(client.post(path, content=body()), 413, "too_large")


JSON = {"Content-Type": "application/json"}
TENSOR = {"name": "size", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
COLOUR = {"name": "colour", "shape": [1], "datatype": "BYTES", "data": ["red"]}
FORM = "multipart/form-data; boundary=b"

BAD: list[tuple[str, str, Any, dict[str, str], int, str]] = [
    # paths and methods
    ("GET", "/nowhere", None, {}, 404, "not_found"),
    ("GET", "/models/", None, {}, 404, "not_found"),
    ("GET", "/models/table/nothing", None, {}, 404, "not_found"),
    ("GET", "/models/unknown", None, {}, 404, "model_not_found"),
    ("POST", "/models/table", b"{}", JSON, 405, "method_not_allowed"),
    ("GET", "/../etc/passwd", None, {}, 404, "not_found"),
    ("GET", "/v2/models", None, {}, 404, "not_found"),
    ("GET", "/%2e%2e/%2e%2e/etc/passwd", None, {}, 404, "not_found"),
    ("POST", "/models", b"{}", JSON, 405, "method_not_allowed"),
    ("GET", PREDICT, None, {}, 405, "method_not_allowed"),
    ("PUT", PREDICT, b"{}", JSON, 405, "method_not_allowed"),
    ("DELETE", PREDICT, None, {}, 405, "method_not_allowed"),
    ("PATCH", INFER, b"{}", JSON, 405, "method_not_allowed"),
    ("POST", "/", b"{}", JSON, 405, "method_not_allowed"),
    ("POST", "/models/unknown/predict", b"{}", JSON, 404, "model_not_found"),
    ("POST", "/models/TABLE/predict", b"{}", JSON, 404, "model_not_found"),
    ("POST", "/models/..%2ftable/predict", b"{}", JSON, 404, "not_found"),
    ("POST", "/models/%00/predict", b"{}", JSON, 404, "model_not_found"),
    ("POST", "/models/" + "x" * 5000 + "/predict", b"{}", JSON, 404, "model_not_found"),
    ("POST", "/v2/models/unknown/infer", b"{}", JSON, 404, "model_not_found"),
    ("GET", "/v2/models/unknown", None, {}, 404, "model_not_found"),
    ("GET", "/v2/models/unknown/ready", None, {}, 404, "model_not_found"),
    # headers
    ("POST", PREDICT, b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_type"),
    ("POST", PREDICT, b"{}", {"Content-Type": "application/xml"}, 415, "unsupported_type"),
    ("POST", PREDICT, b"{}", {"Content-Type": "application/json; charset=utf-16"}, 415, "unsupported_type"),
    ("POST", PREDICT, b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_type"),
    ("POST", PREDICT, b"GIF89a", {"Content-Type": "image/gif"}, 415, "unsupported_type"),
    ("POST", PREDICT, b"<svg/>", {"Content-Type": "image/svg+xml"}, 415, "unsupported_type"),
    ("POST", PREDICT, b"\x1f\x8b", {**JSON, "Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
    ("POST", PREDICT, b"{}", {**JSON, "Content-Encoding": "br"}, 415, "unsupported_encoding"),
    ("POST", PREDICT, b"{}", {**JSON, "Content-Length": "-1"}, 400, "bad_length"),
    ("POST", PREDICT, b"{}", {**JSON, "Content-Length": "abc"}, 400, "bad_length"),
    ("POST", PREDICT, b"{}", {**JSON, "Content-Length": "9" * 30}, 413, "too_large"),
    ("POST", INFER, png(), {"Content-Type": "image/png"}, 415, "unsupported_type"),
    ("POST", PREDICT, b"{}", {f"X-{i}": "1" for i in range(200)}, 431, "headers_too_large"),
    ("GET", "/v2", None, {"X": "1" * 40_000}, 431, "headers_too_large"),
    ("GET", "/v2", None, {"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
    # JSON
    ("POST", PREDICT, b"", JSON, 400, "bad_json"),
    ("POST", PREDICT, b"", {}, 400, "bad_json"),
    ("POST", PREDICT, b"{", JSON, 400, "bad_json"),
    ("POST", PREDICT, b"\x00", JSON, 400, "bad_json"),
    ("POST", PREDICT, b"\xff\xfe", JSON, 400, "bad_json"),
    ("POST", PREDICT, b'{"size": [NaN, 1], "colour": "red"}', JSON, 400, "bad_json"),
    ("POST", PREDICT, b'{"size": [Infinity, 1], "colour": "red"}', JSON, 400, "bad_json"),
    ("POST", PREDICT, b'{"colour": "red", "colour": "red", "size": [1, 2]}', JSON, 400, "bad_json"),
    ("POST", PREDICT, b'{"colour": "\\ud800", "size": [1, 2]}', JSON, 400, "bad_json"),
    ("POST", PREDICT, b"[" * 100_000, JSON, 400, "bad_json"),
    ("POST", PREDICT, b'{"a":' * 30_000, JSON, 400, "bad_json"),
    ("POST", PREDICT, b"9" * 10_000, JSON, 400, "bad_json"),
    ("POST", INFER, b"not json", JSON, 400, "bad_json"),
    # samples
    ("POST", PREDICT, b'{"size": [1e999, 1], "colour": "red"}', JSON, 422, "out_of_range"),
    ("POST", PREDICT, b'{"size": [1' + b"0" * 400 + b', 1], "colour": "red"}', JSON, 422, "out_of_range"),
    ("POST", PREDICT, b"null", JSON, 422, "wrong_type"),
    ("POST", PREDICT, b"3", JSON, 422, "wrong_type"),
    ("POST", PREDICT, b'"text"', JSON, 422, "wrong_type"),
    ("POST", PREDICT, b"[]", JSON, 422, "wrong_size"),
    ("POST", PREDICT, b"[" + b"0," * 1024 + b"0]", JSON, 422, "wrong_size"),
    ("POST", PREDICT, b"{}", JSON, 422, "missing_field"),
    ("POST", PREDICT, {**GOOD, "extra": 1}, JSON, 422, "unknown_field"),
    ("POST", PREDICT, {**GOOD, "é" * 500: 1}, JSON, 422, "unknown_field"),
    ("POST", PREDICT, {**GOOD, "size": [1]}, JSON, 422, "wrong_shape"),
    ("POST", PREDICT, {**GOOD, "size": [[1, 2]]}, JSON, 422, "wrong_shape"),
    ("POST", PREDICT, {**GOOD, "size": [1, "2"]}, JSON, 422, "wrong_type"),
    ("POST", PREDICT, {**GOOD, "size": None}, JSON, 422, "wrong_type"),
    ("POST", PREDICT, {**GOOD, "colour": {}}, JSON, 422, "wrong_type"),
    ("POST", PREDICT, {**GOOD, "colour": "x" * 2000}, JSON, 422, "too_long"),
    ("POST", "/models/ratings/predict", {"user": -(2**70), "item": 1}, JSON, 422, "out_of_range"),
    ("POST", "/models/series/predict", {"series": []}, JSON, 422, "wrong_shape"),
    ("POST", "/models/series/predict", {"series": [[1, 2]] * 10_000}, JSON, 422, "wrong_shape"),
    # pictures
    ("POST", PREDICT, png(), {"Content-Type": "image/png"}, 415, "not_a_picture_model"),
    ("POST", "/models/pictures/predict", b"", {"Content-Type": "image/png"}, 422, "bad_picture"),
    ("POST", "/models/pictures/predict", png()[:50], {"Content-Type": "image/png"}, 422, "bad_picture"),
    ("POST", "/models/pictures/predict", b"{}", {"Content-Type": "image/jpeg"}, 422, "bad_picture"),
    ("POST", "/models/pictures/predict", {"image": "!"}, JSON, 422, "bad_base64"),
    ("POST", "/models/pictures/predict", {"image": [[[300] * 8] * 8] * 3}, JSON, 422, "out_of_range"),
    ("POST", "/models/pictures/predict", b"", {"Content-Type": "multipart/form-data"}, 400, "bad_request"),
    ("POST", "/models/pictures/predict", b"--x", {"Content-Type": FORM}, 400, "bad_request"),
    ("POST", "/models/pictures/predict", b"--b--\r\n", {"Content-Type": FORM}, 422, "missing_field"),
    (
        "POST",
        "/models/pictures/predict",
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--b--\r\n',
        {"Content-Type": FORM},
        400,
        "bad_request",
    ),
    (
        "POST",
        "/models/pictures/predict",
        b'--b\r\nContent-Disposition: form-data; name="x"; filename="f"\r\n\r\ntext\r\n' * 3 + b"--b--\r\n",
        {"Content-Type": FORM},
        400,
        "bad_request",
    ),
    (
        "POST",
        "/models/pictures/predict",
        b'--b\r\nContent-Disposition: form-data; name="other"; filename="f"\r\n\r\ntext\r\n--b--\r\n',
        {"Content-Type": FORM},
        422,
        "missing_field",
    ),
    # Open Inference Protocol
    ("POST", INFER, b"[]", JSON, 422, "wrong_type"),
    ("POST", INFER, {}, JSON, 422, "missing_field"),
    ("POST", INFER, {"inputs": [TENSOR]}, JSON, 422, "missing_field"),
    ("POST", INFER, {"inputs": [TENSOR, TENSOR, COLOUR]}, JSON, 422, "duplicate_field"),
    ("POST", INFER, {"inputs": [{**TENSOR, "shape": [1, 3]}, COLOUR]}, JSON, 422, "wrong_shape"),
    ("POST", INFER, {"inputs": [{**TENSOR, "shape": [10**12, 2]}, COLOUR]}, JSON, 422, "wrong_size"),
    ("POST", INFER, {"inputs": [{**TENSOR, "datatype": "FP31"}, COLOUR]}, JSON, 422, "wrong_datatype"),
    ("POST", INFER, {"inputs": [{**TENSOR, "data": [[1], [2, 3]]}, COLOUR]}, JSON, 422, "wrong_shape"),
    ("POST", INFER, {"inputs": [TENSOR, COLOUR], "outputs": [{"name": "x"}]}, JSON, 422, "unknown_output"),
    ("POST", INFER, {"inputs": [TENSOR, {**COLOUR, "data": [1]}]}, JSON, 422, "wrong_type"),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "code"), BAD)
def test_a_bad_request_gets_its_status_and_a_reason_in_json(client, method, path, body, headers, status, code):
    content = json.dumps(body).encode() if isinstance(body, dict | list) else body
    assert_refused(client.request(method, path, content=content, headers=headers), status, code)
    assert client.post(PREDICT, json=GOOD).status_code == 200


def test_there_are_many_bad_requests():
    assert len(BAD) >= 60


# ---- failures behind the gateway


def test_an_overloaded_model_answers_503_with_when_to_come_back(client, endpoints, monkeypatch):
    monkeypatch.setattr(endpoints, "failure", UnavailableError("overloaded", "table must have room.", status=503))
    response = client.post(PREDICT, json=GOOD)
    assert_refused(response, 503, "overloaded")
    assert response.headers["retry-after"] == "1"


def test_one_dead_model_does_not_hide_the_others(client, endpoints, monkeypatch):
    monkeypatch.setattr(endpoints, "dead", {"table"})
    found = client.get("/models").json()
    assert found["unavailable"] == ["table"] and len(found["models"]) == len(EXAMPLES) - 1
    for path in ("/models/table", "/v2/models/table", "/v2/models/table/ready", "/v2/health/ready"):
        answer = client.get(path)
        assert_refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"


def test_a_fault_of_ours_is_500_without_details(client, endpoints, monkeypatch):
    monkeypatch.setattr(endpoints, "failure", ZeroDivisionError("a secret path /serving/x.py"))
    response = client.post(PREDICT, json=GOOD)
    assert_refused(response, 500, "internal_error")
    assert "secret" not in response.text


def test_a_sound_is_answered_as_a_file_and_as_a_form(client):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8000, 100, "NONE", None))
        out.writeframes(bytes(range(200)))
    content = file.getvalue()
    answer = client.post("/models/sounds/predict", content=content, headers={"Content-Type": "audio/wav"})
    assert answer.status_code == 200 and "class" in answer.json()["prediction"]
    assert client.post("/models/sounds/predict", files={"file": ("a.wav", content)}).json() == answer.json()
