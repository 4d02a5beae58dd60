"""What is said of one run: its arithmetic, its epochs and its result."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.runs.record import EpochRecord, RunRecord
    from orchestrator.training.worker import Arithmetic


def techniques_text(record: "RunRecord") -> str:
    """Name the techniques of a run in one line, and those that its model does not have."""
    chosen = {k: v for k, v in record.techniques.model_dump().items() if v is not None}
    text = ", ".join(f"{k}={v}" for k, v in chosen.items())
    return text + "".join(f"; {name} is not applicable" for name in record.not_applicable)


def arithmetic_lines(record: "RunRecord", arithmetic: "Arithmetic") -> list[str]:
    """What a training will do, in three lines."""
    train, scaling = record.experiment.train, record.experiment.scaling
    count = scaling.num_logical_workers
    fewest, most = scaling.min_workers, scaling.max_workers
    workers = f"{most} workers" if fewest == most else f"{fewest} to {most} workers"
    model = record.experiment.model.type
    return [
        f"run {record.run}: {model} with {arithmetic.parameters:,} parameters on {record.dataset.name}",
        f"techniques {techniques_text(record)}",
        f"{arithmetic.samples:,} samples in {arithmetic.steps_per_epoch:,} steps of {train.batch_size} "
        f"({count} pieces of {arithmetic.batch_per_logical_worker} for {workers}) × {train.epochs} epochs "
        f"= {arithmetic.updates:,} updates",
    ]


def result_lines(record: "RunRecord") -> list[str]:
    """The final metrics and, beside them, what a rule without learning reaches."""
    from orchestrator.reporting.words import metrics_line

    lines = [f"{record.evaluated_on}: {metrics_line(record.metrics)}"] if record.metrics else []
    if record.baseline:
        lines.append(f"baseline ({record.baseline}): {metrics_line(record.baseline_metrics)}")
    return lines


def left_out_lines(record: "RunRecord") -> list[str]:
    """How many damaged rows no epoch read, and a line for each shard; nothing where there are none."""
    if not record.left_out:
        return []
    rows, shards = record.rows_left_out, len(record.left_out)
    counted = f"{rows:,} damaged training row{'s' * (rows > 1)} in {shards:,} shard{'s' * (shards > 1)}"
    return [
        f"left out of every epoch: {counted}",
        *(one.text for one in record.left_out),
    ]


def epoch_line(metrics: "EpochRecord", record: "RunRecord") -> str:
    """One finished epoch in one line."""
    from orchestrator.reporting.words import number

    skipped = {"epoch", "train_loss", "learning_rate", "samples_per_s", "waiting_share", "seconds", "why"}
    found = " · ".join(f"{k} {number(v)}" for k, v in metrics.items() if k not in skipped)
    return (
        f"epoch {metrics['epoch']:.0f}/{record.experiment.train.epochs}: train_loss {number(metrics['train_loss'])} · "
        f"{found} · {metrics['samples_per_s']:,.0f} samples/s · waiting {metrics['waiting_share']:.0%}"
    )
