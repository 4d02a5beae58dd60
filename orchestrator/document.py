"""Settings as they are written: YAML and `key=value` words, each with its line, and not yet interpreted.

Only plain data is read, and of bounded size: no aliases, no tags, no key twice.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import yaml

from cluster.errors import ConfigError

MAX_DEPTH = 20
MAX_VALUES = 10_000
MAX_KEY = 200  # characters
COMMAND_LINE = 0

Path_ = tuple[str | int, ...]


class Document(NamedTuple):
    """Settings as written, and the line that each of them stands on."""

    source: str
    """File name, or `command line`."""
    values: dict[str, Any]
    lines: dict[Path_, int]
    """`COMMAND_LINE` for what came from there."""


def parse_document(text: str, *, source: str) -> Document:
    """Parse YAML text without interpreting it; ``source`` is how a message calls it.

    Raises:
        ConfigError: if it is not YAML, has more than plain data, or is not a mapping.
    """
    try:
        node = _Loader(text).get_single_node()
    except _LimitError as error:
        raise ConfigError(f"{source}:{error.line}: {error.rule}.") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{source}:{line}: must be valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: must be valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else _kind(node)
        raise ConfigError(
            f"{source} must hold the settings of an experiment (data, model, train, …), got {found}. "
            "Begin with `orchestrator recipes copy`."
        )
    lines: dict[Path_, int] = {}
    return Document(source, _plain(node, (), lines, source), lines)


def with_overrides(document: Document, words: Sequence[str]) -> Document:
    """Return the document with every `dotted.key=value` applied; values are read as YAML."""
    values = json.loads(json.dumps(document.values))
    lines = dict(document.lines)
    for key, value in parse_words(words).items():
        set_dotted(values, key, value)
        path = tuple(key.split("."))
        lines = {p: n for p, n in lines.items() if p[: len(path)] != path} | {path: COMMAND_LINE}
    return Document(document.source, values, lines)


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` words, the values as YAML."""
    found = {}
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if not equals or not key:
            raise ConfigError(f"{shown(word)} must have the form key=value, such as train.epochs=5.")
        if len(key) > MAX_KEY or key.count(".") >= MAX_DEPTH:
            raise ConfigError(
                f"{shown(key)} must be the name of a setting, with at most {MAX_KEY} characters and {MAX_DEPTH} parts."
            )
        text = json.dumps(text) if re.match(r"[*%]|[^\w\s~]$", text) else text  # a pattern, a format, one sign
        found[key] = parse_document(f"value: {text}", source=shown(word).strip("'\"")).values["value"]
    return found


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted name in nested settings, in place."""
    *parents, last = key.split(".")
    for i, name in enumerate(parents):
        inner = values.setdefault(name, {})
        if isinstance(inner, str) and name == "techniques":  # `techniques: deep` is short for its preset
            inner = values[name] = {"preset": inner}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{'.'.join(parents[: i + 1])} must be a group of settings to hold {key}, got {shown(inner)}."
            )
        values = inner
    values[last] = value


def dotted(path: Path_) -> str:
    """Return the name of a setting."""
    return ".".join(str(part) for part in path) or "the file"


def shown(value: Any) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


class _LimitError(Exception):
    """There is more in a file than an experiment has."""

    def __init__(self, rule: str, line: int) -> None:
        super().__init__(rule)
        self.rule, self.line = rule, line


class _Loader(yaml.SafeLoader):
    """YAML's plain data: `true`/`false` only, `1e-3` is a number, no aliases, no duplicate keys, no tags.

    Depth and number of values are counted while they are read: the parser calls itself for every level.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, Any]]]] = {}  # type: ignore[misc]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed, write the value", mark)
        self._values += 1
        self._depth += 1
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        if self._depth > MAX_DEPTH + 1:
            raise _LimitError(f"settings must be nested at most {MAX_DEPTH} deep, got more", line)
        if self._values > MAX_VALUES:
            raise _LimitError(f"an experiment must have at most {MAX_VALUES:,} keys and values, got more", line)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _add_resolvers() -> None:
    number = r"[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*)"
    table = [
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        ("int", r"^[-+]?(?:0|[1-9][\d_]*)$", "-+0123456789"),
        (
            "float",
            rf"^(?:{number}(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
            "-+0123456789.",
        ),
    ]
    for tag, pattern, first in table:
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_add_resolvers()


def _float(text: str) -> float:
    return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


_CORE = "tag:yaml.org,2002:"
_CONVERT: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text.replace("_", "")),
    "float": _float,
    "str": str,
    "bool": lambda text: text.lower() == "true",
    "null": lambda _: None,
}
_PLAIN_TAGS = {"map", "seq", *_CONVERT}


def _plain(node: yaml.Node, path: Path_, lines: dict[Path_, int], source: str) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if node.tag.removeprefix(_CORE) not in _PLAIN_TAGS:
        raise ConfigError(f"{source}:{line}: {dotted(path)} must be plain data, got the tag {node.tag!r}.")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, source)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, i), lines, source) for i, item in enumerate(node.value)]
    return _scalar(node, path, source)


def _kind(node: yaml.Node) -> str:
    return type(node).__name__.removesuffix("Node").lower()


def _scalar(node: yaml.Node, path: Path_, source: str) -> Any:
    kind, text = node.tag.removeprefix(_CORE), str(node.value)
    try:
        return _CONVERT[kind](text)
    except (KeyError, ValueError):
        line = node.start_mark.line + 1
        raise ConfigError(f"{source}:{line}: {dotted(path)} must be a {kind}, got {text[:40]!r}.") from None


def _mapping(node: yaml.MappingNode, path: Path_, lines: dict[Path_, int], source: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{source}:{line}: a key must be a word, got a {_kind(key_node)}.")
        key = str(key_node.value)
        if len(key) > MAX_KEY:
            raise ConfigError(f"{source}:{line}: a key must have at most {MAX_KEY} characters, got {len(key):,}.")
        if key in values:
            first = lines[(*path, key)]
            raise ConfigError(
                f"{source}:{line}: {dotted((*path, key))} must be given once, got it on line {first} too."
            )
        lines[(*path, key)] = line
        values[key] = _plain(value_node, (*path, key), lines, source)
    return values
