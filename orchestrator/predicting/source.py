"""What the person names: a dataset in the store, or files in the form of those that the model was trained on."""

from pathlib import Path

from cluster.errors import ConfigError, NotFoundError
from cluster.s3.store import Store
from models.features import ImageFeature, SparseFeature, TextFeature
from orchestrator.data.dataset import datasets, versions
from orchestrator.data.sources.files import SCHEME
from orchestrator.data.sources.formats import require_source
from orchestrator.data.sources.located import plain_name
from orchestrator.data.sources.text import TABLE_SUFFIXES, is_table
from orchestrator.predicting.files import KINDS, file_source, is_one_file
from orchestrator.predicting.parts import BatchSource
from orchestrator.predicting.rows import sparse_source, table_source
from orchestrator.predicting.stored import stored_source
from serving.version import Version


def open_batch(store: Store, source: str, version: Version, *, split: str | None) -> BatchSource:
    """Find and check what is to be predicted.

    Args:
        store: where datasets are.
        source: NAME or NAME@VERSION of a dataset, a file, a folder, or an `s3://` address.
        version: of the model.
        split: of a dataset; default: all.

    Raises:
        NotFoundError: if it is no file, and no dataset has this name.
        ConfigError: if the model does not read it, or it is empty.
    """
    name, _, number = source.partition("@")
    if is_dataset(store, source, split):
        model = f"{version.name} {version.version}"
        _require_dataset(store, name, source)
        return stored_source(store, name, number or None, split, model=model, signature=version.signature)
    if split is not None:
        raise ConfigError(f"--split must be left out unless the source is a dataset, got {split} for {source}.")
    if not source.startswith(SCHEME):
        require_source(source)
    features = version.signature.features
    only = next(iter(features.values())) if len(features) == 1 else None
    if isinstance(only, SparseFeature):
        return sparse_source(source, version, store)
    if only is not None and only.kind in KINDS and not (isinstance(only, TextFeature) and _is_table(source, version)):
        return file_source(source, version.signature, model=f"{version.name} {version.version}")
    if any(isinstance(feature, ImageFeature) for feature in features.values()):
        raise ConfigError(f"{version.name} {version.version} must read one picture to be given files, got more.")
    return table_source(source, version)


def is_dataset(store: Store, source: str, split: str | None) -> bool:
    """Whether a source is the name of a dataset.

    Raises:
        ConfigError: if it is that of a file, too.
    """
    if source.startswith(SCHEME) or "/" in source or "\\" in source:
        return False
    name = source.partition("@")[0]
    if not Path(source).exists():
        return True
    if split is None and not versions(store, name):
        return False
    if split is None:
        raise ConfigError(
            f"SOURCE must be one thing, got {source!r}, which is a dataset in the store and a file here. Write "
            f"./{source} for the file, or {source}@VERSION for the dataset."
        )
    return True


def _require_dataset(store: Store, name: str, source: str) -> None:
    if not versions(store, name):
        known = ", ".join(datasets(store)) or "none"
        raise NotFoundError(
            f"SOURCE must be a file, a folder, an s3:// address or a dataset in the store, got {source!r}. Datasets "
            f"there: {known}."
        )


def _is_table(source: str, version: Version) -> bool:
    """Whether texts are in a column of a table: the model's were, and these are not files of text."""
    if version.signature.rows is None:
        return False
    return plain_name(source).endswith(TABLE_SUFFIXES) if is_one_file(source) else is_table(source)
