"""How a text becomes words or characters, and they the tokens of a `TextFeature`. Imports pydantic only."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from models.features import UNKNOWN, TextFeature, Tokens

_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
_FIRST = UNKNOWN + 1  # the token of the vocabulary's first word


def words(text: str) -> list[str]:
    """Split a text into lower-case words and single punctuation marks.

    A word is a run of letters, digits and underscores of any script; an apostrophe inside it belongs to it. Text that
    looks the same is the same: it is normalized (Unicode NFC), and a typographic apostrophe becomes a plain one.
    Splitting the words joined by spaces gives the same words.

    Data preparation and serving both use this function, so that a word means the same in both. It knows no language:
    a text in a script without spaces, such as Chinese, becomes a few very long words; see `characters`.

    Example:
        >>> words("It's GOOD, isn’t it?")
        ["it's", 'good', ',', "isn't", 'it', '?']
    """
    plain = unicodedata.normalize("NFC", text.lower()).replace("’", "'")
    return _WORD.findall(plain)


def characters(text: str) -> list[str]:
    """Split a text into its characters, in lower case and without blanks; marks stay with what they stand on.

    Splitting the characters joined by spaces gives the same characters.

    Example:
        >>> characters("很好 ที่ OK")
        ['很', '好', 'ที่', 'o', 'k']
    """
    found: list[str] = []
    is_new = True
    for character in unicodedata.normalize("NFC", text.lower()):
        if character.isspace():
            is_new = True
        elif is_new or unicodedata.category(character)[0] != "M":
            found.append(character)
            is_new = False
        else:
            found[-1] += character
    return found


def split(text: str, tokens: Tokens) -> list[str]:
    """Split a text into words or characters."""
    return words(text) if tokens == "words" else characters(text)


def share_without_blanks(texts: Iterable[str]) -> float:
    """Return which share of all letters are of scripts without blanks between words: Chinese, Japanese, Thai, ..."""
    letters = Counter(character for text in texts for character in text if character.isalpha())
    return sum(count for letter, count in letters.items() if _WITHOUT_BLANKS.match(letter)) / max(1, letters.total())


_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Chinese characters
)


def vocabulary(texts: Iterable[str], *, size: int, min_count: int, tokens: Tokens = "words") -> tuple[str, ...]:
    """Return the ``size`` most frequent words or characters that occur ``min_count`` times or more.

    The most frequent comes first, and of equally frequent ones the alphabetically first.
    """
    counts = Counter(word for text in texts for word in split(text, tokens))
    frequent = [(-count, word) for word, count in counts.items() if count >= min_count]
    return tuple(word for _, word in sorted(frequent)[:size])


def tokens(text: str, feature: TextFeature) -> list[int]:
    """Return a text's first ``max_tokens`` tokens; `UNKNOWN` stands for what is not in the vocabulary."""
    index = _index_of(feature)
    return [index.get(word, UNKNOWN) for word in split(text, feature.tokens)[: feature.max_tokens]]


_INDEXES: dict[int, tuple[TextFeature, dict[str, int]]] = {}


def _index_of(feature: TextFeature) -> dict[str, int]:
    """Word to token, built once per feature: building it for each text would take longer than all the rest."""
    if id(feature) not in _INDEXES:  # the feature is kept too, so its id cannot be given to another
        _INDEXES[id(feature)] = (feature, {word: i for i, word in enumerate(feature.vocabulary, start=_FIRST)})
    return _INDEXES[id(feature)][1]
