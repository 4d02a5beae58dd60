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

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic import ValidationError

from cluster.errors import IntegrityError, NotFoundError, PreconditionError
from cluster.process.typed import typed
from cluster.s3.records import named_folders, read_model
from cluster.s3.store import Store
from cluster.s3.stored_json import MOST_BYTES, Listing, first_fault, listing
from models.records import Frozen
from serving.card import write_card
from serving.finished_run import Excerpt, FinishedRun, WeightsFile, checkpoint_weights, read_run
from serving.golden import LoadedModel, record_golden
from serving.version import Version, check_name, key_of, parsed, sha256_of
from serving.weights import build_network, read_weights

ALIAS_ATTEMPTS = 20
MOST_CARD = 2**20  # bytes of a card; one has a few thousand


class Champion(Frozen):
    """The alias that an endpoint serves, and the versions that it stood for before, oldest first."""

    version: str
    history: tuple[str, ...] = ()
    changed: str
    writer: str
    """Makes two writers' bytes differ, so that each can tell whether its own write won."""


class Claim(Excerpt):
    """The run that a version belongs to; of ``claim.json``."""

    run: str


class Listed(NamedTuple):
    """A version as `models ls` shows it."""

    version: Version
    is_champion: bool


def promote(store: Store, *, run: str, name: str) -> Version:
    """Make a finished run's model a version of ``name``, and its champion.

    Promoting the same run again changes nothing but the alias; a promote that was cut short is completed.

    Raises:
        NotFoundError: if there is no such run.
        ConfigError: if the run is not finished, or its model gives no finite answers.
        IntegrityError: if its weights, or what was uploaded, do not match their SHA-256.
    """
    check_name("name", name)
    record = read_run(store, run)
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
    return store.read(key_of(version.name, version.version, "card.md"), most_bytes=MOST_CARD).decode(errors="replace")


def show(store: Store, *, name: str, version: str | None = None) -> Version:
    """One version, or the champion.

    Raises:
        NotFoundError: if it does not exist.
        IntegrityError: if its ``model.json`` cannot be read.
    """
    check_name("name", name)
    version = version or champion(store, name)
    check_name("version", version)
    try:
        body = store.read(key_of(name, version, "model.json"), most_bytes=MOST_BYTES)
    except NotFoundError:
        raise NotFoundError(
            f"the version must exist, got {name} {version}. See `{typed('models', 'show', name)}`."
        ) from None
    described = parsed(Version, body, key_of(name, version, "model.json"))
    if (described.name, described.version) != (name, version):
        raise IntegrityError(
            f"{key_of(name, version, 'model.json')} must describe {name} {version}, got {described.name} "
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
                f"Choose a version: `{typed('models', 'show', name)}`."
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
    key = key_of(name, version, "weights.safetensors")
    cure = "Promote the run again under a new name."
    weights = _read_weights(store, key, described, cure=cure)
    return _loaded(described, weights, where=key)


def _create(store: Store, run: FinishedRun, *, name: str, version: str) -> Version:
    """Write all files of a claimed version, ``model.json`` last; of two writers at once the first one's stands."""
    key, recorded = checkpoint_weights(store, run)
    described = _describe(run, recorded, name=name, version=version)
    weights = _read_weights(store, key, described, cure="Train again.")
    golden = record_golden(_loaded(described, weights, where=f"run {run.run}"))
    files = {
        "weights.safetensors": weights,
        "golden.json": golden.model_dump_json().encode(),
        "card.md": write_card(described).encode(),
    }
    for file, data in files.items():
        _write_verified(store, key_of(name, version, file), data)
    try:
        body = described.model_dump_json(indent=2).encode()
        store.write(key_of(name, version, "model.json"), body, only_if_absent=True)
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
        "lineage": run.model_dump(include={"run", "dataset", "left_out", "code_version", "versions", "experiment"}),
    }


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
            store.write_json(key_of(name, version, "claim.json"), claim, only_if_absent=True)
        except PreconditionError:
            if _claimant(store, name, version) != run:
                continue
        return version


def _claimant(store: Store, name: str, version: str) -> str | None:
    try:
        return read_model(store, key_of(name, version, "claim.json"), Claim, what="a claim of a run").run
    except NotFoundError:
        return None


def _read_champion(store: Store, name: str) -> tuple[Champion, str]:
    check_name("name", name)
    key = _alias_key(name)
    try:
        body, etag = store.read_with_etag(key, most_bytes=MOST_BYTES)
    except NotFoundError:
        raise _no_model(store, name) from None
    return parsed(Champion, body, key), etag


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
    return store.exists(key_of(name, version, "model.json"))


def _write_verified(store: Store, key: str, data: bytes) -> None:
    store.write(key, data)
    if sha256_of(store.read(key)) != sha256_of(data):
        raise IntegrityError(f"{key} must hold what was uploaded, got other bytes. Promote again.")


def _no_model(store: Store, name: str) -> NotFoundError:
    known = ", ".join(models(store)) or "none"
    return NotFoundError(
        f"the model must be in the registry, got {name!r}; it has: {known}. "
        f"Add it: `{typed('models', 'promote', 'RUN', name)}`."
    )


def _alias_key(name: str) -> str:
    return f"models/{name}/aliases/champion.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
