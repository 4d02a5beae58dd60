"""Reads and validates an experiment; every error names file, line, key, rule, value and cure."""

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cluster.errors import ConfigError
from cluster.machine.files import read_file, require_file
from orchestrator.config import Experiment
from orchestrator.document import COMMAND_LINE, Document, Path_, dotted, parse_document, shown, with_overrides

MAX_BYTES = 1_000_000  # an experiment is a page of text; anything larger is the wrong file
MAX_LINES = 20  # of what is wrong


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
    if not options:
        return "There are none yet."
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(options)}."


def setting_names(model: type[BaseModel] = Experiment, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting's dotted name with its field, in the order of the file."""
    for name, field in model.model_fields.items():
        groups = list(_groups_of(field))
        yield prefix + name, field
        for group in groups:
            yield from setting_names(group, f"{prefix}{name}.")


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
    key, found = dotted(path), shown(detail["input"])
    message = detail["msg"].rstrip(".")
    match detail["type"]:
        case "extra_forbidden":
            cure = f" {near_miss(str(path[-1]), group.model_fields)}" if group else ""
            return f"{key} must be a known setting, got {found}.{cure}"
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
