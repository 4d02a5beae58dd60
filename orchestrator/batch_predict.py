"""Predicts every row of a dataset or of files with a version from the registry, and keeps the answers in the store."""

import time
from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.s3.store import Store, parse_url
from orchestrator.data.pushing.pieces import OnCluster
from orchestrator.predicting.predict import PartWork
from orchestrator.predicting.record import FOLDER, PredictionManifest, PredictionPlan, claim
from orchestrator.predicting.run import Progress, finished, parts_there, predict_missing
from orchestrator.predicting.source import open_batch
from serving import registry

_OTHERS = ("datasets", "models", "runs", "sweeps")
"""Folders of the store that hold something else."""


@dataclass(frozen=True)
class BatchPredictions:
    """Predictions that are in the store."""

    folder: str
    """Where they are, below the store's address."""
    url: str
    """The folder's address."""
    manifest: PredictionManifest
    resumed_parts: int
    """Parts that an earlier run had written."""
    new_rows: int
    """Rows that were predicted now."""
    seconds: float
    """That this took."""

    @property
    def rows_per_s(self) -> float:
        """Rows that were predicted in a second."""
        return self.new_rows / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        """Name the version, the rows and the folder; the fields hold the rest."""
        plan = self.manifest.plan
        return f"<BatchPredictions of {plan.model} {plan.version}: {self.manifest.rows:,} rows at {self.url}>"


def batch_predict(
    store: Store,
    name: str,
    source: str,
    *,
    version: str | None = None,
    split: str | None = None,
    out: str | None = None,
    on_cluster: OnCluster = "auto",
    address: str | None = None,
    progress: Progress | None = None,
) -> BatchPredictions:
    """Predict all rows of a source; what an interrupted run has left is kept, and the result is the same.

    Args:
        store: where the registry, the datasets and the predictions are.
        name: of the model.
        source: NAME or NAME@VERSION of a dataset in the store; or a file, a folder or an `s3://` address in the form of
            the source that the model was trained on. A target may be there, and is not read.
        version: of the model; default: the champion.
        split: of a dataset; default: all.
        out: folder in the store; default: `predictions/NAME/VERSION-DIGEST`.
        on_cluster: whether Ray Data does the work; `auto`: if there are some parts, and a cluster is named or running.
        address: of the cluster; see `resolve_address`.
        progress: called with the rows that have answers, and all rows.

    Raises:
        NotFoundError: if there is no such model, version or dataset.
        ConfigError: before anything is predicted, if the source is empty or does not fit the model, or `out` holds
            other predictions; later, if a file turns out not to be whole.
        IntegrityError: if the weights are damaged.
    """
    described = registry.show(store, name=name, version=version)
    batch = open_batch(store, source, described, split=split)
    plan = PredictionPlan(
        model=described.name,
        version=described.version,
        weights_sha256=described.weights_sha256,
        source=batch.uri,
        digest=batch.digest(described.weights_sha256),
        part_rows=tuple(part.piece.rows for part in batch.parts),
    )
    folder = _folder(store, out) if out else f"{FOLDER}/{plan.model}/{plan.version}-{plan.digest[:12]}"
    claim(store, folder, plan)
    began = time.monotonic()
    manifest = finished(store, folder, plan)
    if manifest is not None:
        return BatchPredictions(folder, _url(store, folder), manifest, len(manifest.parts), 0, 0.0)
    known = parts_there(store, folder, plan)
    work = PartWork(store, folder, plan, tuple(part.place for part in batch.parts), batch.filled)
    manifest = predict_missing(work, batch, known, on_cluster=on_cluster, address=address, progress=progress)
    new_rows = manifest.rows - sum(part.rows for part in known.values())
    return BatchPredictions(folder, _url(store, folder), manifest, len(known), new_rows, time.monotonic() - began)


def _folder(store: Store, out: str) -> str:
    """Return the folder that `--out` means, which may be given with the store's own address.

    Raises:
        ConfigError: if it is in another store, or no place for a folder.
    """
    address = store.settings.url.rstrip("/") + "/"
    folder = out.removeprefix(address).strip("/")
    if "://" in folder:
        raise ConfigError(f"--out must be a folder in the store {address}, got {out}. Leave the address out.")
    try:
        parse_url(f"s3://bucket/{folder}")
    except ConfigError:
        raise ConfigError(f"--out must be a folder such as predictions/mine, got {out!r}.") from None
    if folder.split("/")[0] in ("", *_OTHERS):
        raise ConfigError(f"--out must be a folder of its own, such as predictions/mine, got {out!r}.")
    return folder


def _url(store: Store, folder: str) -> str:
    return f"{store.settings.url.rstrip('/')}/{folder}"
