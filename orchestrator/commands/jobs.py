"""Commands for jobs on a cluster: submit, jobs, logs, stop."""

from typing import Annotated

import typer

from cluster.errors import RunInterruptedError
from cluster.process.typed import typed
from orchestrator.commands.app import Address, Config, Json, Overrides, StoreUrl, command, group, store_at

commands = group()


@command(commands, "orchestrator submit train cifar10-cnn --address http://head:8265")
def submit(
    verb: Annotated[str, typer.Argument(metavar="train|sweep", help="What to run.")],
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    store: StoreUrl = None,
    job: Annotated[str | None, typer.Option(help="Id of the job; submitting the same id again does nothing.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show its log; Ctrl-C leaves it running.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a training or a sweep as a job on the cluster, so that this machine may go."""
    from orchestrator.commands.terminal import emit, next_steps, note, out
    from orchestrator.submit import submit as submit_job

    opened = store_at(store)
    submitted = submit_job(verb, config, overrides or [], store=opened, address=address, job=job)
    note(f"cluster {submitted.address}")

    def show() -> None:
        out.print(f"job {submitted.job} {'submitted' if submitted.new else 'was there already'}")
        next_steps(("logs", submitted.job, "--follow"), ("stop", submitted.job), ("jobs",))

    if follow:
        note("Ctrl-C stops watching, not the job")
        logs(submitted.job, follow=True, address=address)
    emit(submitted, as_json=json, show=show)


@command(commands, "orchestrator jobs")
def jobs(json: Json = False, address: Address = None) -> None:
    """List the cluster's jobs."""
    from cluster.jobs import jobs as list_jobs
    from orchestrator.commands.printing.tables import table
    from orchestrator.commands.terminal import emit

    found = list_jobs(address)
    rows = [(j.job, j.status, j.started or "–", j.ended or "–", j.metadata.get("command", j.entrypoint)) for j in found]
    columns = ("job", "status", "started", "ended", "command")
    emit(found, as_json=json, show=lambda: table(columns, rows, least=("command", "ended"), prose=["command"]))


@command(commands, "orchestrator logs JOB --follow")
def logs(
    job: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    address: Address = None,
) -> None:
    """Print a job's log. With --follow, the exit code is the job's."""
    from cluster.jobs import logs as job_logs
    from cluster.jobs import require_success
    from orchestrator.commands.terminal import print_log

    try:
        for text in job_logs(job, address=address, follow=follow):
            print_log(text)
    except KeyboardInterrupt:
        watch, end = typed("logs", job, "--follow"), typed("stop", job)
        raise RunInterruptedError(f"the job goes on. Watch again: `{watch}`. End it: `{end}`.") from None
    if follow:
        require_success(job, address=address)


@command(commands, "orchestrator stop JOB")
def stop(job: str, json: Json = False, address: Address = None) -> None:
    """Stop a job; what it had written can be resumed."""
    from cluster.jobs import stop as stop_job
    from orchestrator.commands.terminal import emit, out

    status = stop_job(job, address=address)
    emit({"job": job, "status": status}, as_json=json, show=lambda: out.print(f"job {job}: {status}"))
