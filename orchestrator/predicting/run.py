"""Works through the parts that are not there yet: with all processors of this machine, or on Ray Data."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from cluster.address import resolve_address
from cluster.errors import ClusterError, IntegrityError, NotFoundError
from cluster.failpoints import failpoint
from cluster.s3.store import Store, all_at_once
from cluster.session import ray_session
from orchestrator.data.columns import Columns
from orchestrator.data.pushing.pieces import OnCluster, OnRay
from orchestrator.data.sources.prepared import Piece
from orchestrator.predicting.answers import rows_in
from orchestrator.predicting.parts import BatchSource
from orchestrator.predicting.predict import PartWork, loaded_model
from orchestrator.predicting.record import (
    PredictedPart,
    PredictionManifest,
    PredictionPlan,
    prediction_manifest_key,
    read_predictions,
)

CLUSTER_PARTS = 4  # of fewer, the start of a cluster's workers would take longer than the parts

Progress = Callable[[int, int], None]
"""Called with the rows that have answers so far, and all rows."""

Runner = Callable[[Callable[[int, Columns], PredictedPart], Sequence[Piece]], Iterator[tuple[int, PredictedPart]]]
"""Calls a function with the rows of each piece, and yields each piece's number and result, in any order."""

T = TypeVar("T")


def finished(store: Store, folder: str, plan: PredictionPlan) -> PredictionManifest | None:
    """Return the manifest of predictions that are all there.

    Raises:
        IntegrityError: if the manifest is damaged.
    """
    try:
        manifest = read_predictions(store, folder)
    except NotFoundError:
        return None
    sizes = {info.key: info.size for info in store.list(f"{folder}/")}
    is_whole = all(sizes.get(f"{folder}/{part.path}") == part.bytes for part in manifest.parts)
    return manifest if manifest.plan == plan and is_whole else None


def parts_there(store: Store, folder: str, plan: PredictionPlan) -> dict[int, PredictedPart]:
    """Return the parts that an earlier run has written, each of which is read and checked."""
    keys = {info.key for info in store.list(f"{folder}/")}
    numbers = [number for number in range(len(plan.part_rows)) if f"{folder}/{plan.path(number)}" in keys]

    def check(number: int) -> PredictedPart | None:
        path = plan.path(number)
        data = store.read(f"{folder}/{path}")
        if rows_in(data, plan, part=number) != plan.part_rows[number]:
            return None
        digest = hashlib.sha256(data).hexdigest()
        return PredictedPart(path=path, rows=plan.part_rows[number], bytes=len(data), sha256=digest)

    found = zip(numbers, all_at_once(check, numbers), strict=True)
    return {number: part for number, part in found if part is not None}


def predict_missing(
    work: PartWork,
    source: BatchSource,
    known: Mapping[int, PredictedPart],
    *,
    on_cluster: OnCluster,
    address: str | None,
    progress: Progress | None,
) -> PredictionManifest:
    """Predict the parts that are not known, and write the manifest.

    Raises:
        ConfigError: if a row cannot be read; names it.
        IntegrityError: if there are other rows than planned.
    """
    plan, parts = work.plan, dict(known)
    missing = [number for number in range(len(plan.part_rows)) if number not in parts]
    done = sum(part.rows for part in parts.values())
    tell = progress or (lambda _done, _total: None)
    tell(done, plan.rows)

    def predict(i: int, columns: Columns) -> PredictedPart:
        return work.do(missing[i], columns)

    pieces = [source.parts[number].piece for number in missing]
    with _runner(work, source, len(missing), on_cluster=on_cluster, address=address) as run:
        for i, part in run(predict, pieces):
            parts[missing[i]] = part
            done += part.rows
            tell(done, plan.rows)
            failpoint("predicting.driver_after_part")
    return _finish(work, parts)


def _finish(work: PartWork, parts: Mapping[int, PredictedPart]) -> PredictionManifest:
    plan = work.plan
    manifest = PredictionManifest(plan=plan, parts=tuple(parts[number] for number in range(len(plan.part_rows))))
    if manifest.rows != plan.rows or tuple(part.rows for part in manifest.parts) != plan.part_rows:
        raise IntegrityError(
            f"{work.folder} must hold an answer for each of {plan.rows:,} rows, got {manifest.rows:,}. Delete it and "
            "repeat the command."
        )
    body = manifest.model_dump_json(indent=1).encode()
    work.store.write(prediction_manifest_key(work.folder), body)
    return manifest


@contextmanager
def _runner(
    work: PartWork, source: BatchSource, num_parts: int, *, on_cluster: OnCluster, address: str | None
) -> Iterator[Runner]:
    """Yield where to work: with ``auto`` a cluster, if one is there that can read the rows, else this process."""
    if on_cluster == "always" or (
        on_cluster == "auto" and num_parts >= CLUSTER_PARTS and _has_cluster(source, address)
    ):
        with ray_session(address, store=work.store.settings):
            yield OnRay().map
        return
    loaded_model(work.store, work.plan)  # damage is found before any row is read
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a part for each processor, as networks this small use no more than one well
    try:
        yield in_threads
    finally:
        torch.set_num_threads(threads)


def _has_cluster(source: BatchSource, address: str | None) -> bool:
    """Whether a cluster is named or running that can read the rows."""
    try:
        found = resolve_address(address)
    except ClusterError:
        return False
    return source.is_everywhere or found.local is not None


def in_threads(function: Callable[[int, Columns], T], pieces: Sequence[Piece]) -> Iterator[tuple[int, T]]:
    """Yield each piece's number and result, as they are ready; as many are in memory as there are processors."""

    def work(i: int) -> tuple[int, T]:
        return i, function(i, pieces[i].read())

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: set[Future[tuple[int, T]]] = set()
        try:
            for i in range(len(pieces)):
                waiting.add(pool.submit(work, i))
                if len(waiting) == threads:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ready)
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        finally:
            for future in waiting:
                future.cancel()
