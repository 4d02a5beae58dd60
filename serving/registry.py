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
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from cluster.config import checked_name
from cluster.errors import ConfigError, IntegrityError, NotFoundError, PreconditionError
from cluster.storage import Store
from models.config import ModelConfig, ResolvedTechniques
from models.features import Signature
from models.network import Network, build, example_batch
from serving.card import write_card
from serving.inputs import Batch, InputError
from serving.protocol import describe_output, output_tensor, parse_request, request_of
from serving.version import DatasetRef, Version

GOLDEN_SIZE = 4
GOLDEN_SEED = 0
# Another processor or another batch size changes the last bits of a float32 sum; other weights change far more.
GOLDEN_RTOL, GOLDEN_ATOL = 1e-3, 1e-4
ALIAS_ATTEMPTS = 20

Parsed = TypeVar("Parsed", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FinishedRun(BaseModel):
    """What the registry needs of a run's ``run.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

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


class Golden(_Frozen):
    """A request and its answer's ``outputs``, both in the Open Inference Protocol."""

    request: dict[str, Any]
    outputs: list[dict[str, Any]]


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
    return store.folders("models")


def versions(store: Store, name: str) -> list[Version]:
    """Every complete version, oldest first.

    Raises:
        NotFoundError: if the registry has no such model.
    """
    found = [show(store, name=name, version=v) for v in _folders(store, name) if _is_complete(store, name, v)]
    if not found:
        raise _no_model(store, name)
    return found


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
        body = store.read(_key(name, version, "model.json"))
    except NotFoundError:
        raise NotFoundError(
            f"the version must exist, got {name} {version}. See `orchestrator models show {name}`."
        ) from None
    return _parsed(Version, body, _key(name, version, "model.json"))


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
        IntegrityError: if the weights do not match their SHA-256.
        ConfigError: if the weights do not fit the configuration.
    """
    described = show(store, name=name, version=version)
    key = _key(name, version, "weights.safetensors")
    weights = store.read(key)
    if _sha256(weights) != described.weights_sha256:
        raise IntegrityError(f"{key} must match its SHA-256, got other bytes. Promote the run again under a new name.")
    network = _build(described.model, described.techniques, described.signature, weights, key)
    return LoadedModel(described, network)


def read_golden(store: Store, *, name: str, version: str) -> Golden:
    """The request and answer that every replica of a version must reproduce.

    Raises:
        NotFoundError: if the version does not exist.
        IntegrityError: if the object is not a golden file.
    """
    key = _key(name, version, "golden.json")
    return _parsed(Golden, store.read(key), key)


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
    expected = output_tensor(golden.outputs)
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


def _create(store: Store, run: FinishedRun, *, name: str, version: str) -> Version:
    """Write all files of a claimed version, ``model.json`` last; of two writers at once the first one's stands."""
    weights = _read_weights(store, run)
    described = _describe(run, weights, name=name, version=version)
    network = _build(described.model, described.techniques, described.signature, weights, f"run {run.run}")
    golden = _record_golden(LoadedModel(described, network))
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


def _describe(run: FinishedRun, weights: bytes, *, name: str, version: str) -> Version:
    return Version.model_validate(
        {
            "name": name,
            "version": version,
            "created": _now(),
            "weights_sha256": _sha256(weights),
            "weights_bytes": len(weights),
            "model": run.experiment["model"],
            "techniques": run.techniques,
            "signature": run.signature,
            "metrics": run.metrics,
            "primary_metric": run.primary_metric,
            "evaluated_on": run.evaluated_on,
            "lineage": run.model_dump(include={"run", "dataset", "code_version", "versions", "experiment"}),
        }
    )


def _read_run(store: Store, run: str) -> FinishedRun:
    _check_name("run", run)
    try:
        body = store.read(f"runs/{run}/run.json")
    except NotFoundError:
        raise NotFoundError(f"the run must exist, got {run!r}. See `orchestrator runs`.") from None
    record = _parsed(FinishedRun, body, f"runs/{run}/run.json")
    if record.state != "finished" or not record.checkpoint:
        raise ConfigError(
            f"run {run} must be finished to be promoted, got {record.state!r}. "
            f"Complete it: `orchestrator resume {run}`."
        )
    return record


def _read_weights(store: Store, run: FinishedRun) -> bytes:
    assert run.checkpoint is not None
    prefix = run.checkpoint.rstrip("/") + "/"
    if not prefix.startswith(f"runs/{run.run}/checkpoints/"):
        raise IntegrityError(f"run {run.run} must name a checkpoint of its own, got {prefix!r}.")
    weights = store.read(prefix + "weights.safetensors")
    recorded = store.read_json(prefix + "manifest.json")["files"]["weights.safetensors"]["sha256"]
    if _sha256(weights) != recorded:
        raise IntegrityError(f"{prefix}weights.safetensors must match its SHA-256, got other bytes. Train again.")
    return weights


def _build(
    config: ModelConfig, techniques: ResolvedTechniques, signature: Signature, weights: bytes, where: str
) -> Network:
    try:
        network = build(config, techniques, signature, seed=0)
        network.load_state_dict(load_safetensors(weights), strict=True)
    except (RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{where} must hold weights that fit its model configuration, got: {reason}") from None
    return network.eval()


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
        return str(store.read_json(_key(name, version, "claim.json"))["run"])
    except NotFoundError:
        return None


def _read_champion(store: Store, name: str) -> tuple[Champion, str]:
    _check_name("name", name)
    key = _alias_key(name)
    try:
        body, etag = store.read_with_etag(key)
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
    try:
        return kind.model_validate(json.loads(body))
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise IntegrityError(f"{key} must be what this version of orchestrator writes, got: {reason}") from None


def _no_model(store: Store, name: str) -> NotFoundError:
    known = ", ".join(models(store)) or "none"
    return NotFoundError(
        f"the model must be in the registry, got {name!r}; it has: {known}. "
        f"Add it: `orchestrator models promote RUN {name}`."
    )


def _check_name(what: str, value: str) -> None:
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
