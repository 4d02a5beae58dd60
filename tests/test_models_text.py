"""One tokenizer for preparation and serving: words, vocabularies and tokens."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.features import UNKNOWN, TextFeature
from models.text import characters, share_without_blanks, split, tokens, vocabulary, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n", []),
        ("A fine Film", ["a", "fine", "film"]),
        ("good, bad...", ["good", ",", "bad", ".", ".", "."]),
        ("It's GOOD, isn\u2019t it?", ["it's", "good", ",", "isn't", "it", "?"]),
        ("'quoted' rock 'n' roll", ["'", "quoted", "'", "rock", "'", "n", "'", "roll"]),
        ("well-made 3.5 x_1", ["well", "-", "made", "3", ".", "5", "x_1"]),
        ("ÉTÉ Straße ΣΑΣ Привет", ["été", "straße", "σας", "привет"]),
        ("e\u0301te\u0301", ["été"]),
        ("good\u00a0film\u2003👍👍", ["good", "film", "👍", "👍"]),
    ],
)
def test_a_text_is_split_into_words_and_marks(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_joined_words_are_split_into_the_same_words(text: str) -> None:
    assert words(" ".join(words(text))) == words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("这部电影 很好!", ["这", "部", "电", "影", "很", "好", "!"]),
        ("ที่นี่ดีมาก", ["ที่", "นี่", "ดี", "ม", "า", "ก"]),
        ("OK がか\u3099", ["o", "k", "が", "が"]),
        ("\u0e49 \u0e49", ["\u0e49", "\u0e49"]),
    ],
)
def test_a_text_is_split_into_characters_with_their_marks(text: str, expected: list[str]) -> None:
    assert characters(text) == split(text, "characters") == expected


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_joined_characters_are_split_into_the_same_characters(text: str) -> None:
    assert characters(" ".join(characters(text))) == characters(text)


def test_the_letters_of_scripts_without_blanks_are_counted() -> None:
    texts = ["很好 ab", "", "123 !?"]
    assert share_without_blanks(texts) == 0.5
    assert share_without_blanks(["これはペンです", "ภาษาไทย", "ຄົນ", "មនុស្ស", "𠮷"]) == 1.0
    assert share_without_blanks(["한국어 문장", "слово", "λόγος", "नमस्ते", "123"]) == 0.0
    assert share_without_blanks([]) == 0.0


def test_tokens_of_characters_are_looked_up_one_by_one() -> None:
    feature = TextFeature(vocabulary=("好", "很"), max_tokens=3, tokens="characters")
    assert tokens("很 好 吗 好", feature) == [3, 2, UNKNOWN]
    assert vocabulary(["很好", "好"], size=9, min_count=1, tokens="characters") == ("好", "很")


def test_a_vocabulary_has_the_most_frequent_words_first_and_equal_ones_in_order() -> None:
    texts = ["b a c c", "d c b a", "e, e"]
    assert vocabulary(texts, size=10, min_count=1) == ("c", "a", "b", "e", ",", "d")
    assert vocabulary(texts, size=10, min_count=2) == ("c", "a", "b", "e")
    assert vocabulary(texts, size=2, min_count=2) == ("c", "a")
    assert vocabulary([], size=2, min_count=1) == ()


def test_a_vocabulary_does_not_depend_on_the_order_of_the_texts() -> None:
    texts = [" ".join(random.Random(i).choices("abcdefgh", k=5)) for i in range(50)]
    assert vocabulary(reversed(texts), size=5, min_count=1) == vocabulary(iter(texts), size=5, min_count=1)


def test_tokens_follow_the_vocabulary_and_are_cut() -> None:
    feature = TextFeature(vocabulary=("film", "a", "good"), max_tokens=4)
    assert tokens("A GOOD film", feature) == [3, 4, 2]
    assert tokens("an awful film", feature) == [UNKNOWN, UNKNOWN, 2]
    assert tokens("a a a a a a", feature) == [3, 3, 3, 3]
    assert tokens("", feature) == []


def test_features_with_the_same_words_in_another_order_have_other_tokens() -> None:
    first, second = (TextFeature(vocabulary=v, max_tokens=4) for v in (("a", "b"), ("b", "a")))
    assert (tokens("a b", first), tokens("a b", second)) == ([2, 3], [3, 2])
