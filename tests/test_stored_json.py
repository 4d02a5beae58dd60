"""JSON of others is counted before it is parsed, exactly, and what is wrong is one short line."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from cluster.errors import IntegrityError, NotFoundError
from cluster.s3 import stored_json
from cluster.s3.stored_json import (
    MANY_BRANCHES,
    MANY_VALUES,
    MOST_BRANCHES,
    MOST_DEPTH,
    MOST_KEYS,
    MOST_VALUES,
    listing,
    parse_json,
    parse_model,
)

texts = st.text(alphabet='a"\\[]{},:é\n', max_size=6)
documents = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=30,
)


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str


def depth(value: Any) -> int:
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def branches(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + branches(inner) for inner in value.values())
    return 1 + sum(map(branches, value)) if isinstance(value, list) else 0


@given(documents, st.booleans(), st.integers(1, 9))
def test_lists_objects_and_keys_are_counted_as_a_parser_would(value: Any, ascii_only: bool, part: int) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_json, "_PART_BYTES", part)
        found = b"".join(stored_json._structure(body))
    assert sum(found.count(sign) for sign in (b"[", b"{", b":")) == branches(value)
    level = levels = 0
    for sign in found.translate(None, b",:"):
        level += 1 if sign in b"[{" else -1
        levels = max(levels, level)
    assert (level, levels) == (0, depth(value))
    assert parse_json(body, where="k") == value


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1), "got lists and objects nested more than 32 deep."),
        (b"[" + b"[]," * MANY_BRANCHES + b"[]]", "got more than 1,000,000 lists, objects and keys."),
        (b"{" + b'"":1,' * MOST_KEYS + b'"":1}', "got an object of more than 10,000 keys."),
        (b"[" + b"1," * (MANY_VALUES + 1) + b"1]", "got more than 2,000,000 values."),
        (b'"' + b"x" * stored_json.MOST_BYTES + b'"', "got 33,554,434 bytes, more than 33,554,432."),
        (b'["\\"' + b"[" * 100 + b'"', "got Expecting ',' delimiter: line 1 column 106"),
        ('["a"]'.encode("utf-16"), "got 'utf-8' codec can't decode byte 0xff"),
        (b"9" * 5000, "got Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_what_exceeds_a_limit_is_refused_and_named(body: bytes, message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_json(body, where="runs/r/run.json")
    assert str(caught.value).startswith(f"runs/r/run.json must be JSON, {message}")
    assert caught.value.exit_code == 100


def test_what_is_within_the_limits_is_read() -> None:
    body = b"[" * MOST_DEPTH + b"]" * MOST_DEPTH
    assert depth(parse_json(body, where="k")) == MOST_DEPTH
    assert len(parse_json(b"[" + b"1," * (MANY_VALUES - 1) + b"1]", where="k")) == MANY_VALUES


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" + b"[]," * MOST_BRANCHES + b"[]]", "more than 125,000 lists, objects and keys"),
        (b"[" + b"1," * (MOST_VALUES + 1) + b"1]", "more than 250,000 values"),
    ],
)
def test_a_record_has_lower_limits_for_what_is_wrong_with_it_takes_memory_too(body: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=f"k must be a record, got {message}"):
        parse_model(Record, body, where="k", what="a record")


def test_a_record_of_many_errors_names_the_first_in_a_short_line() -> None:
    body = json.dumps({"x" * 1000: 1, "name": 1} | {str(i): 1 for i in range(100)}).encode()
    with pytest.raises(IntegrityError) as caught:
        parse_model(Record, body, where="k", what="a record", cure="Write it anew.")
    message = str(caught.value)
    assert message == (
        "k must be a record, got an error at name: Input should be a valid string (and 101 more). Write it anew."
    )


def test_a_listing_holds_what_can_be_read_names_what_is_damaged_and_leaves_out_what_is_gone() -> None:
    def read(name: str) -> str:
        if name == "bad":
            raise IntegrityError("bad must be good, got bad.")
        if name == "gone":
            raise NotFoundError("gone")
        return name.upper()

    assert listing(["a", "bad", "gone", "b"], read) == (["A", "B"], ["bad must be good, got bad."])
