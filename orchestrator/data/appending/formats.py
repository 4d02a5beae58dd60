"""How rows of each format are read by the rules of a version, and the formats to which nothing is appended."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from cluster.errors import ConfigError
from orchestrator.data.appending.pictures import (
    read_more_cifar,
    read_more_idx,
    read_more_parquet,
    read_more_pictures,
    read_more_scenes,
)
from orchestrator.data.appending.ratings import read_more_ratings
from orchestrator.data.appending.rules import CURE, Rules
from orchestrator.data.appending.sounds import read_more_sounds
from orchestrator.data.appending.sparse import read_more_svmlight
from orchestrator.data.appending.tables import read_more_table
from orchestrator.data.appending.texts import read_more_text
from orchestrator.data.sources.formats import require_source, with_left_out
from orchestrator.data.sources.located import ALL
from orchestrator.data.sources.prepared import Prepared

APPENDED: Mapping[str, Callable[[str, Rules], Prepared]] = {
    "huggingface-images": read_more_parquet,
    "image-folder": read_more_pictures,
    "cifar": read_more_cifar,
    "idx": read_more_idx,
    "voc": read_more_scenes,
    "table": read_more_table,
    "text": read_more_text,
    "wav": read_more_sounds,
    "svmlight": read_more_svmlight,
    "ratings": read_more_ratings,
}

_REFUSED: Mapping[str, str] = {
    "series": "a series is cut by time into training, validation and test, so that newer rows would move every cut: "
    "what was tested on would have to be trained on",
    "bundle": "what a library brings along is whole",
}


def read_more(source: str, rules: Rules) -> Prepared:
    """Read a source by the rules of a version.

    Raises:
        ConfigError: if nothing can be appended to its format, or the source does not fit; names the file and the row.
    """
    if rules.format not in APPENDED:
        reason = _REFUSED.get(rules.format, "nobody knows how rows of its format are read")
        raise ConfigError(
            f"--append must be left out for {rules}, of format {rules.format}, got it: {reason}. Push all rows "
            "together as a new version."
        )
    require_source(source)
    prepared = APPENDED[rules.format](source, rules)
    strange = [split for split in prepared.splits if split not in (ALL, *rules.manifest.splits)]
    if strange:
        raise ConfigError(
            f"splits of {source} must be some of those of {rules}, {', '.join(rules.manifest.splits)}, got "
            f"{strange[0]}. {CURE}"
        )
    return replace(prepared, notes=with_left_out(source, rules.format, prepared.notes))
