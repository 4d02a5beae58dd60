"""The model registry: immutable versions in the store, and the alias that says which one an endpoint serves.

models/NAME/VERSION/
    claim.json           written first, by conditional PUT: VERSION belongs to this run
    weights.safetensors  the network's state_dict
    golden.json          a request and the answer that a replica must reproduce before it takes traffic
    card.md              for people
    model.json           written last: configuration, signature, metrics, lineage, SHA-256 of the weights
models/NAME/aliases/champion.json
    {"version": "v2", "history": ["v1"]}, changed by conditional PUT
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from cluster.config import checked_name
from cluster.errors import ConfigError, IntegrityError, NotFoundError, PreconditionError
from cluster.storage import Store
from cluster.stored_json import (
    MANY_VALUES,
    MOST_BYTES,
    Listing,
    first_fault,
    listing,
    named_folders,
    parse_model,
    read_model,
)
from models.config import ResolvedTechniques
from models.features import Signature
from models.network import Network, example_batch
from serving.card import write_card
from serving.inputs import Batch, InputError
from serving.protocol import describe_output, output_tensor, parse_request, request_of
from serving.version import DatasetRef, Version
from serving.weights import build_network, read_weights

GOLDEN_SIZE = 4
GOLDEN_SEED = 0
# Another processor or another batch size changes the last bits of a float32 sum; other weights change far more.
GOLDEN_RTOL, GOLDEN_ATOL = 1e-3, 1e-4
ALIAS_ATTEMPTS = 20
MOST_CARD = 2**20  # bytes of a card; one has a few thousand

Parsed = TypeVar("Parsed", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Excerpt(BaseModel):
    """What the registry needs of a record that has more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FinishedRun(_Excerpt):
    """Of a run's ``run.json``."""

    run: str
    state: str
    experiment: dict[str, Any]
    techniques: ResolvedTechniques
    signature: Signature
    dataset: DatasetRef
    evaluated_on: str
    """The split that ``metrics`` describe."""
    primary_metric: str
    code_version: str
    versions: dict[str, str]
    metrics: dict[str, float]
    checkpoint: str | None


class Champion(_Frozen):
    """The alias that an endpoint serves, and the versions that it stood for before, oldest first."""

    version: str
    history: tuple[str, ...] = ()
    changed: str
    writer: str
    """Makes two writers' bytes differ, so that each can tell whether its own write won."""


class Claim(_Excerpt):
    """The run that a version belongs to; of ``claim.json``."""

    run: str


class WeightsFile(_Excerpt):
    """The weights of a checkpoint, as they were written."""

    bytes: int
    sha256: str


class CheckpointFiles(_Excerpt):
    """The files of a checkpoint."""

    weights: WeightsFile = Field(alias="weights.safetensors")


class CheckpointManifest(_Excerpt):
    """Of a checkpoint's ``manifest.json``."""

    files: CheckpointFiles


class Golden(_Frozen):
    """A request and its answer's ``outputs``, both in the Open Inference Protocol."""

    request: dict[str, Any]
    outputs: list[dict[str, Any]]


class Listed(NamedTuple):
    """A version as `models ls` shows it."""

    version: Version
    is_champion: bool


@dataclass(frozen=True)
class LoadedModel:
    """A version whose weights are verified and in memory."""

    version: Version
    network: Network

    def predict(self, batch: Batch) -> Tensor:
        """Probabilities [B, K], numbers [B] or a forecast [B, horizon, C]."""
        with torch.inference_mode():
            return self.network.predict(batch)


def promote(store: Store, *, run: str, name: str) -> Version:
    """Make a finished run's model a version of ``name``, and its champion.

    Promoting the same run again changes nothing but the alias; a promote that was cut short is completed.

    Raises:
        NotFoundError: if there is no such run.
        ConfigError: if the run is not finished, or its model gives no finite answers.
        IntegrityError: if its weights, or what was uploaded, do not match their SHA-256.
    """
    _check_name("name", name)
    record = _read_run(store, run)
    number = _claim(store, run=run, name=name)
    try:
        version = show(store, name=name, version=number)
    except NotFoundError:
        version = _create(store, record, name=name, version=number)
    set_champion(store, name=name, version=version.version)
    return version


def models(store: Store) -> list[str]:
    """Names of all models in the registry."""
    return named_folders(store, "models").found


def versions(store: Store, name: str) -> list[Version]:
    """Every complete version, oldest first.

    Raises:
        NotFoundError: if the registry has no such model.
    """
    found = [show(store, name=name, version=v) for v in _folders(store, name) if _is_complete(store, name, v)]
    if not found:
        raise _no_model(store, name)
    return found


def list_versions(store: Store) -> Listing[Listed]:
    """Every complete version of every model, and what is damaged: one object that is hides no other."""
    names = named_folders(store, "models")
    found: list[Listed] = []
    damaged = names.damaged
    for name in names.found:
        alias = listing([name], partial(champion, store))
        numbers = [version for version in _folders(store, name) if _is_complete(store, name, version)]
        readable = listing(numbers, partial(_described, store, name))
        found += [Listed(version, version.version in alias.found) for version in readable.found]
        damaged += [*alias.damaged, *readable.damaged]
    return Listing(found, damaged)


def read_card(store: Store, version: Version) -> str:
    """The card of a version, for people.

    Raises:
        NotFoundError: if it has none.
        IntegrityError: if it is far too large.
    """
    return store.read(_key(version.name, version.version, "card.md"), most_bytes=MOST_CARD).decode(errors="replace")


def show(store: Store, *, name: str, version: str | None = None) -> Version:
    """One version, or the champion.

    Raises:
        NotFoundError: if it does not exist.
        IntegrityError: if its ``model.json`` cannot be read.
    """
    _check_name("name", name)
    version = version or champion(store, name)
    _check_name("version", version)
    try:
        body = store.read(_key(name, version, "model.json"), most_bytes=MOST_BYTES)
    except NotFoundError:
        raise NotFoundError(
            f"the version must exist, got {name} {version}. See `orchestrator models show {name}`."
        ) from None
    described = _parsed(Version, body, _key(name, version, "model.json"))
    if (described.name, described.version) != (name, version):
        raise IntegrityError(
            f"{_key(name, version, 'model.json')} must describe {name} {version}, got {described.name} "
            f"{described.version}. Promote the run again under a new name."
        )
    return described


def _described(store: Store, name: str, version: str) -> Version:
    return show(store, name=name, version=version)


def champion(store: Store, name: str) -> str:
    """The version that the champion alias stands for.

    Raises:
        NotFoundError: if the model, or its champion, does not exist.
    """
    return _read_champion(store, name)[0].version


def set_champion(store: Store, *, name: str, version: str) -> Champion:
    """Point the champion alias at a version; the one it stood for goes into its history.

    Raises:
        NotFoundError: if there is no such version.
    """
    show(store, name=name, version=version)

    def change(old: Champion | None) -> tuple[str, tuple[str, ...]]:
        if old is None:
            return version, ()
        return version, old.history if old.version == version else (*old.history, old.version)

    return _change_champion(store, name, change)


def rollback(store: Store, name: str) -> Champion:
    """Point the champion alias at the version it stood for before; again goes one further back.

    Raises:
        NotFoundError: if there is no model, or no version to go back to.
    """

    def change(old: Champion | None) -> tuple[str, tuple[str, ...]]:
        if old is None:
            raise _no_model(store, name)
        if not old.history:
            raise NotFoundError(
                f"{name} must have had another champion to roll back to, got only {old.version}. "
                f"Choose a version: `orchestrator models show {name}`."
            )
        return old.history[-1], old.history[:-1]

    return _change_champion(store, name, change)


def load(store: Store, *, name: str, version: str) -> LoadedModel:
    """Read a version, verify its weights and build its network. Nothing is unpickled.

    Raises:
        NotFoundError: if it does not exist.
        IntegrityError: if the weights do not match their SHA-256, or do not fit the configuration.
    """
    described = show(store, name=name, version=version)
    key = _key(name, version, "weights.safetensors")
    cure = "Promote the run again under a new name."
    weights = _read_weights(store, key, described, cure=cure)
    return _loaded(described, weights, where=key)


def read_golden(store: Store, *, name: str, version: str) -> Golden:
    """The request and answer that every replica of a version must reproduce.

    Raises:
        NotFoundError: if the version does not exist.
        IntegrityError: if the object is not a golden file.
    """
    key = _key(name, version, "golden.json")
    return _parsed(Golden, store.read(key, most_bytes=MOST_BYTES), key)


def check_golden(model: LoadedModel, golden: Golden) -> None:
    """Ask the model its golden request.

    Raises:
        IntegrityError: if it answers something else.
    """
    signature = model.version.signature
    where = f"{model.version.name} {model.version.version}"
    try:
        answer = model.predict(parse_request(golden.request, signature))
    except InputError as error:
        raise IntegrityError(f"golden.json of {where} must be a request the model reads, got: {error}") from None
    require_golden(answer, golden, where=where)


def require_golden(answer: Tensor, golden: Golden, *, where: str) -> None:
    """Compare an answer with the recorded one.

    Raises:
        IntegrityError: naming the largest difference.
    """
    expected = _expected(golden, where)
    if answer.shape != expected.shape:
        raise IntegrityError(
            f"{where} must answer its golden request with shape {list(expected.shape)}, got {list(answer.shape)}."
        )
    if not torch.allclose(answer, expected, rtol=GOLDEN_RTOL, atol=GOLDEN_ATOL):
        difference = (answer - expected).abs().max().item()
        raise IntegrityError(
            f"{where} must answer its golden request as recorded, got a difference of {difference:.3g}. "
            "Train again with the installed versions, or install those of the version's lineage."
        )


def _expected(golden: Golden, where: str) -> Tensor:
    try:
        return output_tensor(golden.outputs)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise IntegrityError(
            f"golden.json of {where} must hold one answer, with shape and data, got {type(error).__name__}: {reason}."
        ) from None


def _create(store: Store, run: FinishedRun, *, name: str, version: str) -> Version:
    """Write all files of a claimed version, ``model.json`` last; of two writers at once the first one's stands."""
    key, recorded = _checkpoint_weights(store, run)
    described = _describe(run, recorded, name=name, version=version)
    weights = _read_weights(store, key, described, cure="Train again.")
    golden = _record_golden(_loaded(described, weights, where=f"run {run.run}"))
    files = {
        "weights.safetensors": weights,
        "golden.json": golden.model_dump_json().encode(),
        "card.md": write_card(described).encode(),
    }
    for file, data in files.items():
        _write_verified(store, _key(name, version, file), data)
    try:
        body = described.model_dump_json(indent=2).encode()
        store.write(_key(name, version, "model.json"), body, only_if_absent=True)
    except PreconditionError:
        return show(store, name=name, version=version)
    return described


def _describe(run: FinishedRun, recorded: WeightsFile, *, name: str, version: str) -> Version:
    try:
        return Version.model_validate(_description(run, recorded, name=name, version=version))
    except ValidationError as error:
        raise IntegrityError(f"runs/{run.run}/run.json must hold a model, got {first_fault(error)}.") from None


def _description(run: FinishedRun, recorded: WeightsFile, *, name: str, version: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "created": _now(),
        "weights_sha256": recorded.sha256,
        "weights_bytes": recorded.bytes,
        "model": run.experiment.get("model"),
        "techniques": run.techniques,
        "signature": run.signature,
        "metrics": run.metrics,
        "primary_metric": run.primary_metric,
        "evaluated_on": run.evaluated_on,
        "lineage": run.model_dump(include={"run", "dataset", "code_version", "versions", "experiment"}),
    }


def _read_run(store: Store, run: str) -> FinishedRun:
    """The record of a finished run.

    Raises:
        NotFoundError: if there is no such run.
        ConfigError: if it is not finished.
    """
    _check_name("run", run)
    try:
        body = store.read(f"runs/{run}/run.json", most_bytes=MOST_BYTES)
    except NotFoundError:
        raise NotFoundError(f"the run must exist, got {run!r}. See `orchestrator runs`.") from None
    record = _parsed(FinishedRun, body, f"runs/{run}/run.json")
    if record.state != "finished" or not record.checkpoint:
        raise ConfigError(
            f"run {run} must be finished to be promoted, got {record.state!r}. "
            f"Complete it: `orchestrator resume {run}`."
        )
    return record


def _checkpoint_weights(store: Store, run: FinishedRun) -> tuple[str, WeightsFile]:
    """The key of the weights that a run ended with, and what is recorded of them."""
    assert run.checkpoint is not None
    prefix = run.checkpoint.rstrip("/") + "/"
    if not prefix.startswith(f"runs/{run.run}/checkpoints/"):
        raise IntegrityError(f"run {run.run} must name a checkpoint of its own, got {prefix!r}.")
    manifest = read_model(store, prefix + "manifest.json", CheckpointManifest, what="a checkpoint's manifest")
    return prefix + "weights.safetensors", manifest.files.weights


def _read_weights(store: Store, key: str, described: Version, *, cure: str) -> bytes:
    """The verified bytes of a version's weights.

    Raises:
        IntegrityError: if they are others than recorded.
    """
    return read_weights(
        store,
        key,
        sha256=described.weights_sha256,
        cure=cure,
        model=described.model,
        techniques=described.techniques,
        signature=described.signature,
    )


def _loaded(described: Version, weights: bytes, *, where: str) -> LoadedModel:
    network = build_network(described.model, described.techniques, described.signature, weights, where=where)
    return LoadedModel(described, network)


def _record_golden(model: LoadedModel) -> Golden:
    signature = model.version.signature
    example = example_batch(signature, size=GOLDEN_SIZE, seed=GOLDEN_SEED)
    request = request_of(example, signature)
    try:
        outputs = describe_output(model.predict(parse_request(request, signature)), signature)
    except InputError as error:
        run = model.version.lineage.run
        raise ConfigError(f"run {run} must give finite answers to be promoted, got: {error}") from None
    return Golden(request=request, outputs=outputs)


def _claim(store: Store, *, run: str, name: str) -> str:
    """The version that this run has, or from now on has, under this name."""
    for version in _folders(store, name):
        if _claimant(store, name, version) == run:
            return version
    number = max((int(v[1:]) for v in _folders(store, name)), default=0)
    while True:
        number += 1
        version = f"v{number}"
        try:
            claim = {"run": run, "writer": uuid4().hex}
            store.write_json(_key(name, version, "claim.json"), claim, only_if_absent=True)
        except PreconditionError:
            if _claimant(store, name, version) != run:
                continue
        return version


def _claimant(store: Store, name: str, version: str) -> str | None:
    try:
        return read_model(store, _key(name, version, "claim.json"), Claim, what="a claim of a run").run
    except NotFoundError:
        return None


def _read_champion(store: Store, name: str) -> tuple[Champion, str]:
    _check_name("name", name)
    key = _alias_key(name)
    try:
        body, etag = store.read_with_etag(key, most_bytes=MOST_BYTES)
    except NotFoundError:
        raise _no_model(store, name) from None
    return _parsed(Champion, body, key), etag


def _change_champion(
    store: Store, name: str, change: Callable[[Champion | None], tuple[str, tuple[str, ...]]]
) -> Champion:
    """Read, decide, write if nobody else wrote meanwhile; else again."""
    for _ in range(ALIAS_ATTEMPTS):
        try:
            old, etag = _read_champion(store, name)
        except NotFoundError:
            old, etag = None, None
        version, history = change(old)
        if old is not None and (version, history) == (old.version, old.history):
            return old
        new = Champion(version=version, history=history, changed=_now(), writer=uuid4().hex)
        condition: dict[str, Any] = {"only_if_absent": True} if etag is None else {"only_if_etag": etag}
        try:
            store.write(_alias_key(name), new.model_dump_json(indent=2).encode(), **condition)
            return new
        except PreconditionError:
            continue
    raise PreconditionError(
        f"the champion of {name} must be changed by one at a time, got {ALIAS_ATTEMPTS} lost races. Try again."
    )


def _folders(store: Store, name: str) -> list[str]:
    """Version folders in the order of their numbers, complete or not."""
    found = [folder for folder in store.folders(f"models/{name}") if re.fullmatch(r"v[1-9][0-9]{0,8}", folder)]
    return sorted(found, key=lambda folder: int(folder[1:]))


def _is_complete(store: Store, name: str, version: str) -> bool:
    return store.exists(_key(name, version, "model.json"))


def _write_verified(store: Store, key: str, data: bytes) -> None:
    store.write(key, data)
    if _sha256(store.read(key)) != _sha256(data):
        raise IntegrityError(f"{key} must hold what was uploaded, got other bytes. Promote again.")


def _parsed(kind: type[Parsed], body: bytes, key: str) -> Parsed:
    return parse_model(kind, body, where=key, what="what this version of orchestrator writes", most_values=MANY_VALUES)


def _no_model(store: Store, name: str) -> NotFoundError:
    known = ", ".join(models(store)) or "none"
    return NotFoundError(
        f"the model must be in the registry, got {name!r}; it has: {known}. "
        f"Add it: `orchestrator models promote RUN {name}`."
    )


def _check_name(what: str, value: str) -> None:
    """Refuse a name that cannot be part of a key.

    Raises:
        ConfigError: naming what it was to be the name of.
    """
    try:
        checked_name(value)
    except ValueError as error:
        raise ConfigError(f"{what} {error}") from None


def _key(name: str, version: str, file: str) -> str:
    return f"models/{name}/{version}/{file}"


def _alias_key(name: str) -> str:
    return f"models/{name}/aliases/champion.json"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
