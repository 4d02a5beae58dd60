"""Ratings under any names, rated more than once, or without a rating."""

from pathlib import Path

import numpy as np
import pytest
from fake_store import MemoryStore

from cluster.errors import ConfigError
from models.features import TARGET
from models.preparing.rows import CategoryColumn
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push_prepared
from orchestrator.data.sources.formats import detect, prepare
from orchestrator.data.sources.options import SourceOptions, parse_options
from orchestrator.data.sources.prepared import Prepared
from orchestrator.document import parse_words
from serving.client import parse_inputs
from serving.requests.inputs import parse_samples


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def read(source: str, *words: str) -> Prepared:
    return prepare(source, options=parse_options(parse_words(list(words))))


def triples(prepared: Prepared) -> set[tuple[str, str, float]]:
    """Who rated what and how, in all splits; a user or item that training never saw is `?`."""
    users, items = (["?", *prepared.features[name].vocabulary] for name in ("user", "item"))
    found = set()
    for part in prepared.splits.values():
        for user, item, value in zip(*(part.columns[name] for name in ("user", "item", TARGET)), strict=True):
            found.add((users[user], items[item], float(value)))
    return found


ROWS = [(user, item, (user * 7 + item) % 5 + 1) for user in range(20) for item in range(user % 3, 12, 2)]
EXPECTED = {(f"{user}", f"{item}", float(value)) for user, item, value in ROWS}


def lines(order: str = "uir") -> str:
    return "".join(",".join(str({"u": u, "i": i, "r": r, "t": 99}[c]) for c in order) + "\n" for u, i, r in ROWS)


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("user_id,book_id,rating", "uir"),
        ("User-ID,ISBN,Book-Rating", "uir"),
        ("reviewerID,asin,overall,unixReviewTime", "uirt"),
        ("business_id,user_id,stars", "iur"),
        ("userId,movieId,rating,timestamp", "uirt"),
        ("score,uid,anime_id", "rui"),
    ],
)
def test_ratings_are_found_under_their_usual_names(tmp_path, header, order):
    source = written(tmp_path / "r.csv", f"{header}\n{lines(order)}")
    assert detect(source, SourceOptions()) == "ratings"
    prepared = read(source)
    assert triples(prepared) == EXPECTED
    names = header.split(",")
    others = [name for letter, name in zip(order, names, strict=True) if letter not in "uir"]
    assert prepared.notes == tuple(f"left out column {name}" for name in others)
    user, item = names[order.index("u")], names[order.index("i")]
    assert prepared.rows.columns == {user: CategoryColumn(feature="user"), item: CategoryColumn(feature="item")}


def test_the_numbers_of_rows_and_trailing_delimiters_are_left_out(tmp_path):
    rows = [f"{i},{line},{i}" for i, line in enumerate(lines("uir").splitlines())]
    source = written(tmp_path / "r.csv", "\n".join([",user_id,book_id,rating,", *rows]) + "\n")
    prepared = read(source)
    assert triples(prepared) == EXPECTED
    assert prepared.notes == ("left out 2 columns: 1, 5",)


def test_the_columns_can_be_named(tmp_path):
    source = written(tmp_path / "r.csv", f"who,what,how\n{lines()}")
    words = ["user=who", "item=what", "rating=how"]
    assert triples(read(source, *words)) == EXPECTED
    with pytest.raises(ConfigError, match=r"must have user, item, .* Name the columns with --option user=NAME"):
        read(source, "user=whom", "item=what", "rating=how")
    with pytest.raises(ConfigError, match=r"must have a column of ratings, called much, got who, what, how"):
        read(source, "user=who", "item=what", "rating=much")


def test_a_model_is_asked_with_the_names_of_the_source(tmp_path):
    prepared = read(written(tmp_path / "r.csv", f"user_id,book_id,stars\n{lines()}"))
    store = MemoryStore()
    push_prepared(store, prepared)  # type: ignore[arg-type]
    signature = open_dataset(store, "r").signature()  # type: ignore[arg-type]
    expected = {"user": [8], "item": [1]}
    for sample in (
        {"user_id": 7, "book_id": "1", "stars": 5},
        {"user": "7", "item": 1},
        parse_inputs(["user_id=7", "book_id=1"], signature),
        parse_inputs(["user=7", "item=1"], signature),
    ):
        batch = parse_samples(sample, signature)
        assert {name: prepared.features[name].vocabulary[batch[name].item() - 1] for name in expected} == {
            "user": "7",
            "item": "1",
        }


@pytest.mark.parametrize(("copies", "value"), [("last", 5.0), ("mean", 3.0)])
def test_pairs_that_are_rated_twice_are_taken_once_or_refused(tmp_path, copies, value):
    source = written(tmp_path / "r.csv", f"user_id,item_id,rating\n0,99,1\n{lines()}0,99,5\n")
    expected = r"got user 0 and item 99 in rows 2 and \d+. Take one with --option copies=last or --option copies="
    with pytest.raises(ConfigError, match=expected):
        read(source)
    prepared = read(source, f"copies={copies}")
    users, items = (["?", *prepared.features[name].vocabulary] for name in ("user", "item"))
    found = [
        float(part.columns[TARGET][row])
        for part in prepared.splits.values()
        for row in range(part.rows)
        if (users[part.columns["user"][row]], items[part.columns["item"][row]]) in (("0", "99"), ("0", "?"))
    ]
    assert found == [value]
    total = len(ROWS) + 1
    assert sum(part.rows for part in prepared.splits.values()) == total
    assert prepared.notes == (f"took the {copies} of {total + 1} rows that rate {total} pairs of user and item",)


def test_rows_without_a_rating_are_told_from_items_that_a_user_has_not(tmp_path):
    source = written(tmp_path / "r.csv", f"user_id,item_id\n{lines('ui')}")
    with pytest.raises(ConfigError, match=r"must have a column of ratings, .* draw items .* with --option negatives=4"):
        read(source)
    prepared = read(source, "negatives=2")
    found = triples(prepared)
    there = {(user, item) for user, item, _ in EXPECTED}
    assert {(user, item) for user, item, value in found if value == 1 and "?" not in (user, item)} <= there
    assert not {(user, item) for user, item, value in found if value == 0} & there
    ones = sum((part.columns[TARGET] == 1).sum() for part in prepared.splits.values())
    zeros = sum((part.columns[TARGET] == 0).sum() for part in prepared.splits.values())
    assert ones == len(ROWS)
    assert 0.3 * len(ROWS) < zeros <= 2 * len(ROWS)
    assert prepared.notes == (
        f"drew {zeros} pairs of a user and an item that the user has not, as 0, to {ones} rows, as 1",
    )
    again = read(source, "negatives=2")
    assert np.array_equal(again.splits["train"].columns["item"], prepared.splits["train"].columns["item"])
    rated = written(tmp_path / "rated.csv", f"user_id,item_id,rating\n{lines()}")
    with pytest.raises(ConfigError, match=r"negatives must be left out for .*, which has ratings, got 2"):
        read(rated, "negatives=2")


def test_two_numbered_identifiers_never_end_as_numbers(tmp_path):
    rows = "".join(f"{u},{i},{r},x{u % 2}\n" for u, i, r in ROWS)
    source = written(tmp_path / "t.csv", f"shop_id,clerk_id,price,label\n{rows}")
    with pytest.raises(ConfigError, match=r"2 columns of .* shop_id: an identifier .*; clerk_id: an identifier of 12"):
        read(source)
