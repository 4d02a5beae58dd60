"""All formats, and which one a source is in.

    format              source                                                          task
    huggingface-images  folder of train-*.parquet, test-*.parquet with pictures         classes
    ratings             TSV of user, item, rating, timestamp (MovieLens `u.data`)       a number
    series              CSV of a date and numeric columns (ETT)                         a forecast
    bundle              sklearn:digits · sklearn:china · statsmodels:elnino             each its own

`sklearn:china` is the pixels of a photo, half of them missing: a factorization machine restores them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.errors import ConfigError, NotFoundError
from orchestrator.data.sources.bundles import BUNDLES, read_bundle
from orchestrator.data.sources.huggingface import read_huggingface_images
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Prepared
from orchestrator.data.sources.ratings import read_ratings
from orchestrator.data.sources.series import read_series

FORMATS: Mapping[str, Callable[[str, SourceOptions], Prepared]] = {
    "huggingface-images": read_huggingface_images,
    "ratings": read_ratings,
    "series": read_series,
    "bundle": read_bundle,
}


def prepare(source: str, *, format: str | None = None, options: SourceOptions | None = None) -> Prepared:
    """Read and check a source.

    Args:
        source: a file, a folder, or the name of a bundled dataset.
        format: one of `FORMATS`; found out from the source when left out.
        options: what the person says about it.

    Raises:
        ConfigError: if the source is malformed (names the file and the row), or an option does not belong to it.
        NotFoundError: if there is no such file.
    """
    options = options or SourceOptions()
    format = format or _detect(source)
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if format != "bundle" and not Path(source).exists():
        raise NotFoundError(
            f"source must be a file, a folder or one of {', '.join(BUNDLES)}, got {source!r}, which does not exist."
        )
    return FORMATS[format](source, options)


def _detect(source: str) -> str:
    path = Path(source)
    if source in BUNDLES:
        return "bundle"
    if path.is_dir() or path.suffix == ".parquet":
        return "huggingface-images"
    if path.suffix in (".data", ".tsv"):
        return "ratings"
    if path.suffix == ".csv":
        return "series"
    raise ConfigError(
        f"source must be a folder, a .parquet, .csv, .tsv or .data file, or one of {', '.join(BUNDLES)}, "
        f"got {source!r}. Or name its format: {', '.join(FORMATS)}."
    )
