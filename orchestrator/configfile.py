"""Reads an experiment from YAML and `key=value` words; every error names file, line, key, rule, value and cure."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cluster.errors import ConfigError
from cluster.machine.files import read_file, require_file
from orchestrator.config import Experiment

MAX_BYTES = 1_000_000  # an experiment is a page of text; anything larger is the wrong file
MAX_DEPTH = 20
MAX_VALUES = 10_000
MAX_KEY = 200  # characters
MAX_LINES = 20  # of what is wrong
COMMAND_LINE = 0

Path_ = tuple[str | int, ...]


class Document(NamedTuple):
    """Settings as written, and the line that each of them stands on."""

    source: str
    """File name, or `command line`."""
    values: dict[str, Any]
    lines: dict[Path_, int]
    """`COMMAND_LINE` for what came from there."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and validate one experiment.

    Args:
        path: YAML file, or the name of a shipped recipe.
        overrides: `dotted.key=value` words; they win over the file.

    Raises:
        ConfigError: with `file:line`, key, rule, value found and cure.
    """
    return validate(with_overrides(read_document(path), overrides))


def read_document(path: str | Path) -> Document:
    """Parse a YAML file, or a shipped recipe of that name, without interpreting it.

    Raises:
        ConfigError: if it is missing, no regular file, too large, not text, not YAML, or not a mapping.
    """
    data = read_file(_existing_file(path), most_bytes=MAX_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8 text, got byte {data[error.start]:#04x} at {error.start}.") from None
    return parse_document(text, source=str(path))


def parse_document(text: str, *, source: str) -> Document:
    """Parse YAML text; see `read_document`."""
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
            raise ConfigError(f"{_shown(word)} must have the form key=value, such as train.epochs=5.")
        if len(key) > MAX_KEY or key.count(".") >= MAX_DEPTH:
            raise ConfigError(
                f"{_shown(key)} must be the name of a setting, with at most {MAX_KEY} characters and {MAX_DEPTH} parts."
            )
        text = json.dumps(text) if re.match(r"[*%]|[^\w\s~]$", text) else text  # a pattern, a format, one sign
        found[key] = parse_document(f"value: {text}", source=_shown(word).strip("'\"")).values["value"]
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
                f"{'.'.join(parents[: i + 1])} must be a group of settings to hold {key}, got {_shown(inner)}."
            )
        values = inner
    values[last] = value


def validate(document: Document) -> Experiment:
    """Turn settings into an experiment.

    Raises:
        ConfigError: one line for each thing that is wrong.
    """
    try:
        # strict as JSON: "3" and true are no numbers, but a list may fill a tuple
        return Experiment.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        lines = list(islice(_lines_of(error, document), MAX_LINES))
        more = error.error_count() - len(lines)
        raise ConfigError("\n".join([*lines, f"and {more} more."] if more > 0 else lines)) from None


def near_miss(word: str, known: Iterable[str]) -> str:
    """`Did you mean …?`, or what is known when nothing is near."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(options)}."


def setting_names(model: type[BaseModel] = Experiment, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting's dotted name with its field, in the order of the file."""
    for name, field in model.model_fields.items():
        groups = list(_groups_of(field))
        yield prefix + name, field
        for group in groups:
            yield from setting_names(group, f"{prefix}{name}.")


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


def _existing_file(path: str | Path) -> Path:
    from orchestrator.recipe import recipe_names, recipe_path

    file = Path(path)
    if file.is_file():
        return file
    if str(path) in recipe_names():
        return recipe_path(str(path))
    if file.exists():
        require_file(path, file.stat())
    raise ConfigError(f"{path} must be a YAML file or a recipe, got neither. {near_miss(str(path), recipe_names())}")


def _plain(node: yaml.Node, path: Path_, lines: dict[Path_, int], source: str) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if node.tag.removeprefix(_CORE) not in _PLAIN_TAGS:
        raise ConfigError(f"{source}:{line}: {_dotted(path)} must be plain data, got the tag {node.tag!r}.")
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
        raise ConfigError(f"{source}:{line}: {_dotted(path)} must be a {kind}, got {text[:40]!r}.") from None


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
                f"{source}:{line}: {_dotted((*path, key))} must be given once, got it on line {first} too."
            )
        lines[(*path, key)] = line
        values[key] = _plain(value_node, (*path, key), lines, source)
    return values


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path) or "the file"


def _lines_of(error: ValidationError, document: Document) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        path, group = _settings_path(detail["loc"])
        sentence = _sentence(detail, path, group)
        named = path or tuple(sentence.split(" ", 1)[0].split("."))  # a rule across groups names its key first
        yield _where(document, named) + sentence


def _where(document: Document, path: Path_) -> str:
    line = next((document.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in document.lines), None)
    if line == COMMAND_LINE:
        return "command line: "
    return f"{document.source}: " if line is None else f"{document.source}:{line}: "


def _settings_path(location: tuple[str | int, ...]) -> tuple[Path_, type[BaseModel] | None]:
    """The path as the user wrote it (without union tags), and the group of settings that holds its last part."""
    group: type[BaseModel] | None = Experiment
    holder: type[BaseModel] | None = Experiment
    path: list[str | int] = []
    tags: dict[str, type[BaseModel]] = {}
    for part in location:
        if part in tags:
            group, tags = tags[str(part)], {}
            continue
        holder = group
        path.append(part)
        field = group.model_fields.get(str(part)) if group else None
        groups = list(_groups_of(field)) if field else []
        group = groups[0] if len(groups) == 1 else None
        tags = {_tag(g): g for g in groups} if len(groups) > 1 else {}
    return tuple(path), holder


_MODEL_TYPES = ("mlp", "cnn", "rnn", "fm")


def _tag(group: type[BaseModel]) -> str:
    return str(get_args(group.model_fields["type"].annotation)[0])


def _groups_of(field: FieldInfo) -> Iterator[type[BaseModel]]:
    """The groups of settings that a field may hold: one, or several of a union."""
    annotation: Any = field.annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            yield candidate


def _sentence(detail: ErrorDetails, path: Path_, group: type[BaseModel] | None) -> str:
    key, found = _dotted(path), _shown(detail["input"])
    message = detail["msg"].rstrip(".")
    match detail["type"]:
        case "extra_forbidden":
            cure = near_miss(str(path[-1]), group.model_fields if group else ())
            return f"{key} must be a known setting, got {found}. {cure}"
        case "missing":
            return f"{key} must be given, got nothing.{_meaning(path, group)}"
        case "union_tag_not_found":
            return f"{key}.type must be given, got nothing. One of {', '.join(_MODEL_TYPES)}."
        case "union_tag_invalid":
            tag = str(detail["ctx"]["tag"])
            return f"{key}.type must be a known model, got {tag!r}. {near_miss(tag, _MODEL_TYPES)}"
        case "literal_error":
            options = str(detail["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
            return f"{key} must be one of {', '.join(options)}, got {found}. {near_miss(str(detail['input']), options)}"
        case "value_error":
            return _own_rule(key, message.removeprefix("Value error, "))
        case "model_type":
            return f"{key} must be a group of settings, got {found}. Write its settings below it, indented."
    rule = message.removeprefix("Input should be ")
    rule = f"be {rule}" if rule != message else f"satisfy: {rule}"
    return f"{key} must {rule}, got {found}.{_meaning(path, group)}"


def _own_rule(key: str, rule: str) -> str:
    """A rule of this project's validators: either a whole sentence that begins with its keys, or the rest of one."""
    return f"{key} {rule}." if rule.startswith("must ") else f"{rule}."


def _meaning(path: Path_, group: type[BaseModel] | None) -> str:
    """What the setting means, as the cure for a wrong value."""
    field = group.model_fields.get(str(path[-1])) if group and path else None
    text = field.description if field else None
    return f" {' '.join(text.split()).rstrip('.')}." if text else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def settings_table() -> str:
    """Every setting with its default and meaning, as the Markdown table in `docs/configuration.md`."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in dict(setting_names()).items():
        if any(_groups_of(field)):
            continue
        default = "required" if field.is_required() else f"`{_as_yaml(field.default)}`"
        lines.append(f"| `{name}` | {default} | {_text(field.description)} |")
    return "\n".join(lines) + "\n"


def _as_yaml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _text(description: str | None) -> str:
    return " ".join((description or "").split()).replace("|", "\\|")
