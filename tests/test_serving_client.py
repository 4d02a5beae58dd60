"""The client: what a command line's words mean, what is asked again, and which error a refusal becomes."""

import contextlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from example_runs import PICTURES, RATINGS, ROWS, SERIES, SOUNDS, TABLE, TEXTS

from cluster.errors import ClusterError, ConfigError, NotFoundError, RunFailedError
from serving import client
from serving.applications import _free_port
from serving.client import Client, answer_line, parse_inputs
from serving.http import access
from serving.requests.series import parse_series
from serving.requests.values import InputError
from tests.web_server import Quiet, listening

CSV = "date,heat,load,other\n" + "".join(f"2026-01-{d:02},{d}.5,{d},x\n" for d in range(1, 9))
LAST_ROWS = [[float(d), d + 0.5] for d in range(3, 9)]  # load, heat


def test_words_of_categories_and_numbers_become_a_sample():
    assert parse_inputs(["user=196", "item=242"], RATINGS) == {"user": "196", "item": "242"}
    words = ["length=5.1", "colour=a=b", "width=-3e0"]
    assert parse_inputs(words, TABLE) == {"size": {"length": 5.1, "width": -3.0}, "colour": "a=b"}


def test_the_word_of_a_picture_is_its_path():
    assert parse_inputs(["cat.png"], PICTURES) == Path("cat.png")


def test_a_sound_is_its_path_a_text_its_words_and_a_sparse_row_its_columns():
    assert parse_inputs(["seven.wav"], SOUNDS) == Path("seven.wav")
    [text], [row] = TEXTS.features, ROWS.features
    assert parse_inputs(["a fine film"], TEXTS) == {text: "a fine film"}
    assert parse_inputs(["a", "fine", "film"], TEXTS) == {text: "a fine film"}
    assert parse_inputs([f"{text}=a film"], TEXTS) == {text: "a film"}
    assert parse_inputs(["3=1.5", "0=2"], ROWS) == {row: {"3": 1.5, "0": 2.0}}
    with pytest.raises(ConfigError, match=r"inputs must be given as COLUMN=NUMBER \.\.\., .* got 'x=1'"):
        parse_inputs(["x=1"], ROWS)


def test_a_text_may_lie_in_a_file(tmp_path):
    [text] = TEXTS.features
    file = tmp_path / "review.txt"
    assert parse_inputs([str(file)], TEXTS) == {text: str(file)}
    file.write_text("ein schöner Film\n", encoding="utf-8")
    for word in (str(file), f"{text}={file}"):
        assert parse_inputs([word], TEXTS) == {text: "ein schöner Film\n"}
    assert parse_inputs([f"see {file}"], TEXTS) == {text: f"see {file}"}


def test_the_word_of_a_series_is_a_csv_file_or_its_text(tmp_path):
    (tmp_path / "x.csv").write_text(CSV)
    for word in (str(tmp_path / "x.csv"), CSV):
        assert parse_inputs([word], SERIES) == {"series": LAST_ROWS}


def test_a_series_without_a_header_is_read_by_position():
    text = "\n".join(f"{d}, {d}.5" for d in range(1, 9))
    assert parse_series(text, SERIES.features["series"], lookback=6) == LAST_ROWS


@pytest.mark.parametrize("word", ['{"user": 196, "item": 242}', '[{"user": "1", "item": "2"}]'])
def test_a_word_of_json_is_passed_on(word):
    assert parse_inputs([word], RATINGS) == json.loads(word)


@pytest.mark.parametrize(
    ("words", "signature", "message"),
    [
        (["196", "242"], RATINGS, "must be given as item=... user=..., got '196'"),
        (["user=1", "film=2"], RATINGS, "got 'film=2'"),
        (["length=x"], TABLE, "length must be a number, got 'x'"),
        (["length=nan"], TABLE, "length must be a number, got 'nan'"),
        (["a.png", "b.png"], PICTURES, "must be the path of a PNG or JPEG file, got 2 words"),
        ([], SERIES, "must be the path of a CSV file, got 0 words"),
        (["/nowhere/x.csv"], SERIES, "/nowhere/x.csv must be a file that can be read, got No such file"),
        (["1,2\n3,4\n"], SERIES, "must have 6 rows or more, got 2"),
        (["load,x\n" + "1,2\n" * 6], SERIES, "must have the columns load, heat, got none named 'heat'"),
        (["load,heat\n" + "1,2\n" * 5 + "1,\n"], SERIES, r"row 7 of the series must hold 2 numbers, got '1,'"),
        (["1,2\n" * 5 + "1\n"], SERIES, r"row 6 of the series must hold 2 numbers, got '1'"),
        (["{"], RATINGS, "must be JSON when they begin with"),
    ],
)
def test_words_that_do_not_fit_are_refused(words, signature, message):
    with pytest.raises(ConfigError, match=message):
        parse_inputs(words, signature)


def test_answers_are_shown_on_lines():
    top = [{"class": "cat", "probability": 0.91}, {"class": "dog", "probability": 0.09}]
    assert answer_line({"prediction": {**top[0], "top": top}}) == "cat 91.0%  dog 9.0%"
    unseen = {"value": 3.25, "unseen": ["user"]}
    assert answer_line({"predictions": [unseen, {"value": 1.0}]}) == "3.25  (never seen in training: user)\n1"
    filled = {"value": 2.0, "filled": ["age", "job"]}
    assert answer_line({"prediction": filled}) == "2  (not given, so filled: age, job)"
    assert answer_line({"prediction": {"forecast": [{"a": 1.0, "b": 2.5}, {"a": 3.0, "b": 4.0}]}}) == (
        "1: a 1  b 2.5\n2: a 3  b 4"
    )


# ---- over HTTP

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A server that gives the answers of a list, one for each request, and notes what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str | None, bytes]] = []
        server = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.asked.append((self.path, self.headers["Content-Type"], body))
                server.answers.pop(0)(self)

            def do_GET(self) -> None:
                server.asked.append((self.path, None, b""))
                server.answers.pop(0)(self)

        self.handler, self.url = Handler, ""


def answer(status: int, body: Any, headers: dict[str, str] | None = None) -> Answer:
    def send(handler: BaseHTTPRequestHandler) -> None:
        content = json.dumps(body).encode() if not isinstance(body, bytes) else body
        handler.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    with listening(running.handler) as httpd:
        running.url = f"http://127.0.0.1:{httpd.server_port}"
        yield running


def refusal(code: str = "x", field: str | None = None, message: str = "it must fit.") -> dict[str, Any]:
    return {"code": code, "field": field, "message": message}


def test_a_question_is_asked_again_after_503_and_after_a_broken_connection(server):
    busy = answer(503, refusal("overloaded"), {"Retry-After": "0"})
    server.answers = [busy, hang_up, busy, answer(200, {"prediction": {"value": 1.0}})]
    assert Client(server.url, "t").predict("m", {"a": 1}) == {"prediction": {"value": 1.0}}
    assert server.asked == [("/models/m/predict", "application/json", b'{"a": 1}')] * 4


def test_asking_again_ends_with_the_budget(server, monkeypatch):
    monkeypatch.setattr(client, "RETRY_BUDGET_S", 0.2)
    server.answers = [answer(503, refusal(message="m is overloaded."), {"Retry-After": "0"})] * 10_000
    with pytest.raises(RunFailedError, match="m is overloaded"):
        Client(server.url, "t").predict("m", {})


def test_the_server_says_when_to_ask_again_and_the_budget_says_until_when(server, monkeypatch):
    monkeypatch.setattr(client, "RETRY_BUDGET_S", 0.2)
    server.answers = [answer(503, refusal(message="m has no replica."), {"Retry-After": "3600"})] * 2
    with pytest.raises(RunFailedError, match="m has no replica"):
        Client(server.url, "t").predict("m", {})
    assert len(server.asked) == 2


def test_words_are_read_with_the_signature_of_their_model(server):
    signature = {"name": "a b", "signature": RATINGS.model_dump(mode="json")}
    server.answers = [
        answer(503, refusal("deploying"), {"Retry-After": "0"}),
        answer(200, signature),
        answer(200, {"prediction": {"value": 1.0}}),
    ]
    Client(server.url, "t").predict_words("a b", ["user=196", "item=242"])
    assert [path for path, _, _ in server.asked[:2]] == ["/models/a%20b"] * 2
    assert json.loads(server.asked[2][2]) == {"user": "196", "item": "242"}


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (401, refusal("unauthorized"), ConfigError, "must accept the token, got 401. Set ORCHESTRATOR_ENDPOINT_TOKEN"),
        (404, refusal(message="m must be deployed."), NotFoundError, "m must be deployed"),
        (422, refusal("wrong_shape", "a", "a must be a list."), InputError, "a must be a list"),
        (400, b"<html>", ClusterError, "must be an endpoint of orchestrator, got HTTP 400"),
        (500, refusal("internal_error"), RunFailedError, "it must fit"),
        (502, b"", ClusterError, "must be an endpoint of orchestrator, got HTTP 502"),
        (307, b"", ClusterError, "must be an endpoint of orchestrator, got HTTP 307"),
    ],
)
def test_a_refusal_becomes_an_error_and_is_not_asked_again(server, status, body, kind, message):
    server.answers = [answer(status, body)]
    with pytest.raises(kind, match=message) as raised:
        Client(server.url, "t").predict("m", {})
    if status == 422:
        assert (raised.value.code, raised.value.field) == ("wrong_shape", "a")
    assert len(server.asked) == 1


def test_a_picture_is_sent_as_the_file_that_it_is(server, tmp_path):
    server.answers = [answer(200, {})] * 2
    (tmp_path / "a.png").write_bytes(b"\x89PNG...")
    Client(server.url, "t").predict("m", tmp_path / "a.png")
    Client(server.url, "t").predict("m", b"\xff\xd8...")
    assert [(kind, body) for _, kind, body in server.asked] == [
        ("image/png", b"\x89PNG..."),
        ("image/jpeg", b"\xff\xd8..."),
    ]


def test_numbers_that_json_cannot_hold_are_refused_here(server):
    with pytest.raises(InputError, match="must be finite numbers"):
        Client(server.url, "t").predict("m", {"a": float("nan")})
    assert server.asked == []


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        while True:
            handler.wfile.write(bytes(2**20))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (answer(200, b"[" * 50_000), "got lists and objects nested more than 32 deep. Check the address"),
        (answer(200, b"<html>"), "got Expecting value"),
        (answer(200, b"[]"), "got no object"),
        (answer(200, b"\xff"), "got 'utf-8' codec"),
        (answer(500, b"[" * 50_000), "got HTTP 500"),
        (endless, "got more than 33,554,432 bytes"),
    ],
)
def test_another_servers_answer_is_refused_whatever_it_sends(server, sent, message):
    server.answers.append(sent)
    with pytest.raises(ClusterError, match=f"must be an endpoint of orchestrator, {message}"):
        Client(server.url, "t").predict("m", {"x": 1})


@pytest.mark.parametrize(
    "sent", [{}, {"predictions": 1}, {"prediction": {}}, {"prediction": {"value": "x"}}, {"prediction": {"top": [{}]}}]
)
def test_an_answer_without_predictions_is_refused(sent):
    with pytest.raises(ClusterError, match="the endpoint must answer with predictions, got something else"):
        answer_line(sent)


def test_nothing_listening_is_an_error_at_once():
    with pytest.raises(ClusterError, match=r"an endpoint must answer at .*ConnectionError. Start it"):
        Client(f"http://127.0.0.1:{_free_port('127.0.0.1')}", "t").models()


# ---- address and token


def test_the_token_is_created_once_for_the_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))
    assert access.read_token() is None
    [token] = access.ensure_tokens()
    assert access.ensure_tokens() == [token] and access.read_token() == token and len(token) >= 40
    assert oct(access.token_path().stat().st_mode & 0o777) == "0o600"
    access.token_path().write_text(f"new\n{token}\n")
    assert access.ensure_tokens() == ["new", token] and access.read_token() == "new"


def test_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    assert access.read_url() == "http://127.0.0.1:8000"
    access.write_url("http://127.0.0.1:1234")
    assert access.read_url() == "http://127.0.0.1:1234"
    monkeypatch.setenv("ORCHESTRATOR_ENDPOINT", "http://10.0.0.1:80")
    monkeypatch.setenv("ORCHESTRATOR_ENDPOINT_TOKEN", "from-the-environment")
    assert access.read_url() == "http://10.0.0.1:80"
    assert access.ensure_tokens() == ["from-the-environment"] and not access.token_path().exists()


@pytest.mark.parametrize(
    ("value", "hosts"), [("", ()), (" , ", ()), ("a.example, B.example:8443  c", ("a.example", "B.example:8443", "c"))]
)
def test_the_names_of_a_proxy_in_front_are_listed_in_the_environment(monkeypatch, value, hosts):
    monkeypatch.setenv("ORCHESTRATOR_ENDPOINT_HOSTS", value)
    assert access.read_allowed_hosts() == hosts


@pytest.mark.parametrize("value", ["https://a.example", "a.example/", "*", "a.example:x", "[::1]"])
def test_what_is_no_host_name_is_refused(monkeypatch, value):
    monkeypatch.setenv("ORCHESTRATOR_ENDPOINT_HOSTS", f"b.example {value}")
    with pytest.raises(ConfigError, match="ORCHESTRATOR_ENDPOINT_HOSTS must hold names like models"):
        access.read_allowed_hosts()


@pytest.mark.parametrize("token", ["two words", "ü", "a\tb"])
def test_a_token_that_no_header_can_carry_is_refused(monkeypatch, token):
    monkeypatch.setenv("ORCHESTRATOR_ENDPOINT_TOKEN", token)
    with pytest.raises(ConfigError, match="a token must be printable ASCII without spaces"):
        access.ensure_tokens()
