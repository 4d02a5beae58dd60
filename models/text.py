"""How a text becomes words, and words become the tokens of a `TextFeature`. Imports nothing heavier than pydantic."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from models.features import UNKNOWN, TextFeature

_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
_FIRST = UNKNOWN + 1  # the token of the vocabulary's first word


def words(text: str) -> list[str]:
    """Split a text into lower-case words and single punctuation marks.

    A word is a run of letters, digits and underscores of any script; an apostrophe inside it belongs to it. Text that
    looks the same is the same: it is normalized (Unicode NFC), and a typographic apostrophe becomes a plain one.
    Splitting the words joined by spaces gives the same words.

    Data preparation and serving both use this function, so that a word means the same in both. It knows no language:
    a text in a script without spaces, such as Chinese, becomes a few very long words.

    Example:
        >>> words("It's GOOD, isn’t it?")
        ["it's", 'good', ',', "isn't", 'it', '?']
    """
    plain = unicodedata.normalize("NFC", text.lower()).replace("’", "'")
    return _WORD.findall(plain)


def vocabulary(texts: Iterable[str], *, size: int, min_count: int) -> tuple[str, ...]:
    """Return the ``size`` most frequent words that occur ``min_count`` times or more.

    The most frequent comes first, and of equally frequent ones the alphabetically first.
    """
    counts = Counter(word for text in texts for word in words(text))
    frequent = [(-count, word) for word, count in counts.items() if count >= min_count]
    return tuple(word for _, word in sorted(frequent)[:size])


def tokens(text: str, feature: TextFeature) -> list[int]:
    """Return the tokens of a text's first ``max_tokens`` words; `UNKNOWN` stands for a word not in the vocabulary."""
    index = _index_of(feature)
    return [index.get(word, UNKNOWN) for word in words(text)[: feature.max_tokens]]


_INDEXES: dict[int, tuple[TextFeature, dict[str, int]]] = {}


def _index_of(feature: TextFeature) -> dict[str, int]:
    """Word to token, built once per feature: building it for each text would take longer than all the rest."""
    if id(feature) not in _INDEXES:  # the feature is kept too, so its id cannot be given to another
        _INDEXES[id(feature)] = (feature, {word: i for i, word in enumerate(feature.vocabulary, start=_FIRST)})
    return _INDEXES[id(feature)][1]
