"""Commands for a first look and the local cluster: demo, doctor, up, down, status."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import ConfigError, OrchestratorError
from cluster.process.typed import typed
from orchestrator.commands.app import Address, DryRun, Json, StoreUrl, Yes, command, group
from orchestrator.commands.ending import confirm

if TYPE_CHECKING:
    from cluster.machine.state import LocalState
    from serving.deploy import Endpoint
    from serving.deployed import Deployed

commands = group()


@command(commands, "orchestrator demo")
def demo(
    json: Json = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the local cluster and the endpoints running.")] = False,
) -> None:
    """See all of it in about two minutes: push, train, sweep, deploy and query, on data that comes with the package."""
    from orchestrator.commands.demo import run_demo
    from orchestrator.commands.terminal import emit, out, print_next

    report = run_demo(keep=keep)

    def show() -> None:
        for query in report["queries"]:
            out.print(f"asked   {query['ask']}\nanswer  {query['answer']}\ntruth   {query['truth']}\n", markup=False)
        out.print(f"Everything is in {report['store']}; it took {sum(report['seconds'].values()):.0f} s.")
        print_next(report["next"])

    emit(report, as_json=json, show=show)


@command(commands, "orchestrator doctor")
def doctor(json: Json = False, address: Address = None, store: StoreUrl = None) -> None:
    """Check Python, torch, Ray, the store, ports and disk: one line and one cure each."""
    from orchestrator.commands.doctor import run_checks
    from orchestrator.commands.terminal import emit, out

    checks = run_checks(address=address, store_url=store)

    def show() -> None:
        for check in checks:
            out.print("ok  " if check.ok else "FAIL", style="green" if check.ok else "red", end=" ")
            out.print(f"{check.name:<12} {check.detail}")
            if not check.ok:
                out.print(f"     {'':<12} {check.cure}", style="yellow")

    emit(checks, as_json=json, show=show)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@command(commands, "orchestrator up")
def up(
    json: Json = False,
    cpus: Annotated[int | None, typer.Option(help="Logical CPUs of the Ray head; default: all.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of the Ray head; default: all.")] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Start a Ray head.")] = True,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Start an S3 store.")] = True,
    redeploy: Annotated[
        bool, typer.Option("--redeploy", help="Serve again what was deployed when the Ray head before ended.")
    ] = False,
) -> None:
    """Start a Ray head and an S3 store on this machine; what already runs is left alone.

    A cluster that RAY_ADDRESS names, or a store that ORCHESTRATOR_STORE names, is used instead of a local one.
    Endpoints end with the Ray head that served them; those of an earlier one are named.
    """
    from cluster import local
    from cluster.address import named_cluster
    from cluster.storage import named_store
    from orchestrator.commands.terminal import emit, next_steps, out
    from serving.deployed import gone_endpoints

    started = time.perf_counter()
    cluster, place = named_cluster(), named_store()
    if redeploy and (cluster is not None or not ray):
        found = cluster.address if cluster else "--no-ray"
        raise ConfigError(f"--redeploy must have the local Ray head, got {found}. Use `{typed('deploy', 'NAME')}`.")
    state = local.up(cpus=cpus, gpus=gpus, with_ray=ray and cluster is None, with_store=store and place is None)
    gone = gone_endpoints(state.ray)
    back = _redeploy(gone, state) if redeploy else []
    seconds = time.perf_counter() - started

    def show() -> None:
        if cluster:
            out.print(f"Ray        {cluster.address} (from {cluster.source}): yours, nothing to start")
        elif state.ray:
            out.print(f"Ray        {state.ray.address}   dashboard {state.ray.dashboard_url}")
            out.print(f"           token in {state.ray.token_file} (for the dashboard and other clients)")
        if place:
            out.print(f"Store      {place} (from ORCHESTRATOR_STORE): yours, nothing to start")
        elif state.store:
            settings = state.store.settings
            out.print(f"Store      {settings.url} at {settings.endpoint_url}")
            out.print(f"           keys in {settings.credentials_file}, profile {settings.profile}")
        for endpoint in back:
            out.print(f"Endpoint   {endpoint.name} {endpoint.version} answers again at {endpoint.predict_url}")
        out.print(f"ready in {seconds:.1f} s", style="dim")
        if gone and not back:
            out.print(f"\n{gone_line(gone)}", style="yellow")
            next_steps(("up", "--redeploy"), ("down",))
            return
        next_steps(("data", "push", "sklearn:digits"), ("train", "digits-cnn"), ("down",))

    emit({**state.model_dump(mode="json"), "gone_endpoints": gone, "redeployed": back}, as_json=json, show=show)


def gone_line(gone: "list[Deployed]") -> str:
    """Name the endpoints that went with the Ray head that served them."""
    names = ", ".join(f"{endpoint.name} {endpoint.version}" for endpoint in gone)
    return f"Endpoints that were deployed went with the Ray head that served them: {names}."


def _redeploy(gone: "list[Deployed]", state: "LocalState") -> "list[Endpoint]":
    """Serve every endpoint again that can be; then raise what one of them raised."""
    from cluster.session import ray_session
    from orchestrator.commands.terminal import note
    from serving import deploy as serving
    from serving.deployed import store_of

    assert state.ray is not None
    back, failures = [], []
    for endpoint in gone:
        note(f"deploying {endpoint.name} {endpoint.version}")
        try:
            store = store_of(endpoint, state.store)
            with ray_session(state.ray.address, store=store.settings, serves=True):
                back.append(serving.redeploy(endpoint, store))
        except OrchestratorError as error:
            failures.append(error)
            note(f"{endpoint.name} {endpoint.version} is still gone: {error}")
    if failures:
        raise failures[0]
    return back


@command(commands, "orchestrator down")
def down(
    json: Json = False,
    delete_data: Annotated[bool, typer.Option("--delete-data", help="Remove the local store's data too.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """End what `up` started, and nothing else. The store's data stay, unless you say otherwise."""
    from cluster import local
    from orchestrator.commands.terminal import emit, out
    from orchestrator.data.reading.cache import clear_cache
    from serving.deployed import forget_deleted

    if dry_run:
        state = local.status()
        found = [part for part in (state.ray, state.store) if part and part.running()]
        data = ", and delete every dataset, run and model in the local store" if delete_data else ""
        emit(state, as_json=json, show=lambda: out.print(f"would end {len(found)} servers, and no others{data}"))
        return
    if delete_data:
        confirm("Delete every dataset, run and model in the local store?", yes=yes)
    ended = local.down(delete_data=delete_data)
    clear_cache("memory")
    if delete_data:
        forget_deleted()
    emit({"ended": ended}, as_json=json, show=lambda: out.print("\n".join(ended) or "nothing was running"))


@command(commands, "orchestrator status")
def status(json: Json = False, address: Address = None, store: StoreUrl = None) -> None:
    """Show which cluster and which store would be used, and whether they answer."""
    from orchestrator.commands.doctor import check_servers
    from orchestrator.commands.terminal import emit, next_steps, out

    checks = check_servers(address=address, store_url=store)

    def show() -> None:
        for check in checks:
            out.print(f"{check.name:<8}{'ok' if check.ok else 'not usable':<12}{check.detail}", markup=False)
        if not all(check.ok for check in checks):
            next_steps(("up",), ("doctor",))

    emit(checks, as_json=json, show=show)
