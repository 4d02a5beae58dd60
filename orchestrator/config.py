"""The experiment: one YAML file, every setting of it, and what may not be combined. Imports pydantic only.

Reading a file, with its line numbers and near misses, is in `orchestrator/configfile.py`.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WrapValidator, model_validator

from cluster.config import Name
from models.config import ModelConfig, Techniques, resolve_techniques
from models.records import FiniteSettings

MAX_WORKERS = 4096


def _worker_counts(value: Any) -> Any:
    counts = list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(n, bool) or not isinstance(n, int) for n in counts) or len(counts) not in (1, 2):
        raise ValueError(f"must be a whole number, or [fewest, most] of them, got {value!r}")
    if not all(0 < n <= MAX_WORKERS for n in counts) or counts != sorted(counts):
        raise ValueError(f"must be from 1 to {MAX_WORKERS}, the fewest first, got {value!r}")
    return tuple(value) if isinstance(value, list) else value


class DataConfig(FiniteSettings):
    """Which dataset to read, and how."""

    name: Name
    """A dataset in the store (`orchestrator data ls`)."""
    version: Name | None = None
    """One of its versions; the newest when left out. A run records the one it used."""
    lookback: int | None = Field(default=None, gt=0)
    """Series only: time steps that the model reads."""
    horizon: int | None = Field(default=None, gt=0)
    """Series only: time steps that it predicts."""
    season: int | None = Field(default=None, gt=0)
    """Series only: steps after which it repeats, such as 24 for hourly data. The baseline repeats the last season."""
    augment: tuple[Literal["flip", "crop", "cutout"], ...] = ()
    """Pictures only: random changes in training. `flip`: left-right; `crop`: shift by up to an eighth of the
    side; `cutout`: blank a square of a quarter of the side."""
    shuffle_mb: int = Field(default=128, gt=0)
    """MiB of samples that each logical worker shuffles among at a time, as they are stored. A worker takes memory for
    three such windows for each of its logical workers (the one in use, the next, and one that ends), and about 96 MiB
    for row groups on their way."""
    bucket_batches: int = Field(default=16, gt=0, le=4096)
    """Text, sound and sparse rows only: batches among which samples are sorted by length, so that those of one batch
    need little padding; 1 does not sort."""
    cache: Literal["memory", "disk", "none"] = "memory"
    """Where row groups are kept for the next epoch. All workers and runs on a machine share it."""
    cache_mb: int = Field(default=1024, ge=0)
    """The most that the cache of a machine takes, in MiB."""
    damaged: Literal["fail", "skip"] = "fail"
    """What becomes of stored rows that cannot be read. `fail`: the run ends and names their shard; `skip`: all rows are
    read once before the first step, and damaged ones of the training split are left out, counted and named."""
    damaged_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training split's rows that `damaged: skip` may leave out; where more are damaged, the run ends."""

    @model_validator(mode="after")
    def _windows_are_whole(self) -> "DataConfig":
        if (self.lookback is None) != (self.horizon is None):
            raise ValueError(
                f"data.lookback and data.horizon must be given together, got {self.lookback} and {self.horizon}"
            )
        return self


class TrainConfig(FiniteSettings):
    """How the weights are fitted."""

    epochs: int = Field(gt=0, le=100_000)
    """Passes over the training split."""
    batch_size: int = Field(default=128, gt=0)
    """Samples per update, over all workers together."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """`adam` suits factorization machines and recurrent nets."""
    learning_rate: float = Field(gt=0)
    """The highest one; see `schedule`."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of `sgd`, in Nesterov's form when above 0."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    """`one_cycle`: linear up for `warmup` of all updates, then linear down to 0; `cosine`: down along a cosine."""
    warmup: float = Field(default=0.2, ge=0, lt=1)
    """Share of all updates in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of the weights, independent of the regularization technique."""
    l1: float = Field(default=1e-6, ge=0)
    """Strength of the L1 penalty, with `techniques.regularization: penalty`."""
    l2: float = Field(default=1e-4, ge=0)
    """Strength of the L2 penalty, with `techniques.regularization: penalty`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Classes only: share of the probability that is spread over all classes."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Scale the gradient down to this norm when it is longer."""
    drop_last: bool = False
    """Leave out an epoch's last, smaller batch."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides initial weights, sample order, dropout and augmentation."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a GPU that has it, fp32 elsewhere. What was used is recorded in the run."""
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    """`auto`: channels_last for a CNN."""
    checkpoint_epochs: int | None = Field(default=1, gt=0)
    """Epochs between checkpoints; the last epoch always writes one."""
    checkpoint_steps: int | None = Field(default=None, gt=0)
    """Weight updates between checkpoints, within epochs too."""
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    """Minutes between checkpoints: at most this much work is lost when a machine dies."""
    keep_checkpoints: int = Field(default=3, gt=0)
    """Older ones are removed."""
    evaluate_batch_size: int = Field(default=1024, gt=0)
    """Samples at a time when the model is judged; changes results by rounding at most."""


class ScalingConfig(FiniteSettings):
    """How many machines share the work."""

    workers: Annotated[int | tuple[int, int], BeforeValidator(_worker_counts)] = 1
    """Processes that train together, each with a part of every batch. `[fewest, most]` is elastic: a run goes on with
    fewer when a node is lost, and grows when there is room again."""
    logical_workers: int | None = Field(default=None, gt=0)
    """Pieces that every batch is cut into; results depend on it and not on `workers`, which may not be more.
    Default: 2, or the most workers if more."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs that Ray reserves for each."""
    threads_per_worker: int | None = Field(default=None, gt=0)
    """Threads of each worker's tensor operations; default: its whole CPUs."""
    start_timeout_s: float = Field(default=120, gt=0)
    """A run whose workers cannot all be placed within this time ends with an error."""
    max_failures: int = Field(default=3, ge=0)
    """Failures of workers after which the run ends; each one resumes from the newest valid checkpoint. A preempted node
    does not count."""
    hang_timeout_s: float = Field(default=60, gt=0)
    """A worker that gives no sign of life for so long is replaced; an exchange of gradients may take no longer."""
    reduction: Literal["fixed_order", "all_reduce"] = "fixed_order"
    """How gradients are added up. `fixed_order`: the same bits for any number of workers; `all_reduce`: without this
    promise, it sends less where a worker has three or more pieces that are no power of two."""
    dollars_per_hour: float | None = Field(default=None, gt=0)
    """Price of one worker, to say what a run and its losses cost."""

    @property
    def min_workers(self) -> int:
        """The fewest that may train."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most that may train."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def num_threads(self) -> int:
        """Threads of each worker's tensor operations."""
        return self.threads_per_worker or max(1, int(self.cpus_per_worker))

    @property
    def num_logical_workers(self) -> int:
        """The pieces that every batch is cut into."""
        return self.logical_workers or max(2, self.max_workers)

    @model_validator(mode="after")
    def _every_worker_has_a_piece(self) -> "ScalingConfig":
        if self.num_logical_workers < self.max_workers:
            raise ValueError(
                f"scaling.logical_workers must be at least scaling.workers ({self.max_workers}), "
                f"got {self.num_logical_workers}"
            )
        return self


class BudgetConfig(FiniteSettings):
    """What a sweep may take, as a short probe predicts it."""

    dollars: float | None = Field(default=None, gt=0)
    """Price of all trainings; the sweep repeats each combination as often as this pays for."""
    minutes: float | None = Field(default=None, gt=0)
    """Time from the start to the end, likewise."""

    @model_validator(mode="after")
    def _is_one(self) -> "BudgetConfig":
        if self.dollars is None and self.minutes is None:
            raise ValueError("sweep.budget must hold dollars or minutes, got neither")
        return self


class SweepConfig(FiniteSettings):
    """Which settings to compare, and how often to repeat each combination."""

    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)
    """Dotted name of a setting, and the values to try."""
    resolution: Literal[3, 4, 5] | None = None
    """Train a fraction of the combinations only, in which effects are told apart this well. 3: main effects from each
    other; 4: also from interactions of two; 5: these from each other, too. Default: all combinations."""
    seeds: int = Field(default=3, gt=0, le=1000)
    """Repetitions of each combination, with seeds `train.seed`, `train.seed` + 1, ..."""
    budget: BudgetConfig | None = None
    """Repeat each combination as often as this pays for: at least twice, and at most `seeds` times if that is given."""
    metric: str | None = None
    """Metric of the evaluation that decides; default: the task's own (accuracy, rmse, mse)."""
    target: float | None = None
    """Value of the metric, on the split that every epoch is judged on; what it takes in seconds and dollars to get
    there is compared, too."""
    dollars_per_hour: dict[Literal["cpu", "gpu"], Annotated[float, Field(gt=0)]] = {}
    """Price of one worker by its processor, such as `{cpu: 0.05, gpu: 1.2}`; default: `scaling.dollars_per_hour`."""
    concurrency: int | None = Field(default=None, gt=0)
    """Trainings at the same time; default: as many as the cluster has CPUs (or GPUs) for."""
    replicates: Literal["auto", "together", "alone"] = "auto"
    """Whether seeds of an arm are trained together as one batched model, with the same numbers up to rounding. `auto`:
    where it is faster (MLPs on a CPU), unless costs are compared with those of arms that cannot."""
    cell_timeout_minutes: float | None = Field(default=None, gt=0)
    """A training that takes longer is ended and counts as failed; the others go on. Default: no limit."""
    tune_learning_rate: int | None = Field(default=None, ge=2, le=15)
    """Trainings that choose a learning rate for each combination before it is compared, on a grid of factors of √10
    around `train.learning_rate`. Default: all are compared at one learning rate."""

    @model_validator(mode="after")
    def _learning_rate_is_either_tuned_or_compared(self) -> "SweepConfig":
        if self.tune_learning_rate and "train.learning_rate" in self.vary:
            raise ValueError(
                "sweep.tune_learning_rate must be left out where sweep.vary compares learning rates, "
                f"got {self.tune_learning_rate}"
            )
        return self


class RangeConfig(FiniteSettings):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    """`log`: as many between 0.001 and 0.01 as between 0.01 and 0.1."""
    step: float | None = None
    """Only `low`, `low` + `step`, ..."""


def _choices(value: Any, _: Any) -> RangeConfig | list[Any]:
    """In place of the union's own validation, which would refuse each alternative with sentences of its own."""
    if isinstance(value, RangeConfig):
        return value
    if isinstance(value, dict):
        _check_range(value)
        return RangeConfig.model_validate(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of values, or a range such as {{low: 0, high: 0.9}}, got {value!r}")
    if not value:
        raise ValueError("must hold at least one value, got an empty list")
    return list(value)


def _check_range(value: dict[str, Any]) -> None:
    if not {"low", "high"} <= set(value) <= set(RangeConfig.model_fields):
        raise ValueError(f"must hold low and high, and may hold scale and step, got {', '.join(value) or 'nothing'}")
    scale = value.get("scale", "linear")
    if scale not in ("linear", "log"):
        raise ValueError(f"must have the scale linear or log, got {scale!r}")
    low, high, step = value["low"], value["high"], value.get("step")
    for number in (low, high) if step is None else (low, high, step):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"must be a range of numbers, got {number!r}. Give other values as a list")
    if low >= high:
        raise ValueError(f"must have low below high, got {low} and {high}")
    if scale == "log" and low <= 0:
        raise ValueError(f"must have low above 0 on the scale log, got {low}")
    if step is not None:
        _check_step(low, high, step, scale)


def _check_step(low: float, high: float, step: float, scale: str) -> None:
    if scale == "log":
        raise ValueError(f"must have no step on the scale log, got {step}. Give the values as a list")
    if step <= 0 or abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise ValueError(f"must reach high ({high}) from low ({low}) in whole steps, got step {step}")


class SearchConfig(FiniteSettings):
    """Which settings to choose for the best model, and how."""

    method: Literal["random", "tpe", "asha", "pbt"] = "tpe"
    """`random`; `tpe`: from the eleventh trial on, near the good ones so far; `asha`: random, and only the best third
    goes on after epochs 1, 3, 9, ...; `pbt`: all train together, and the worst go on from copies of the best."""
    trials: int = Field(gt=0, le=10_000)
    """Trainings."""
    space: dict[str, Annotated[RangeConfig | list[Any], WrapValidator(_choices)]] = Field(min_length=1)
    """Dotted name of a setting, and a list of values or a range `{low, high}`, if wanted with `scale: log` or a
    `step`; whole numbers where the setting is one."""
    metric: str | None = None
    """Metric that decides, on the validation split (on the test split where there is no other); default: the task's
    own (accuracy, rmse, mse)."""
    concurrency: int | None = Field(default=None, gt=0)
    """Trainings at the same time; default: as many as the cluster has CPUs (or GPUs) for. With 1, the same seed leads
    to the same trials (not with `pbt`)."""
    trial_timeout_minutes: float | None = Field(default=None, gt=0)
    """A training that takes longer (with `pbt`: from one copy to the next) is ended and counts as failed; the others go
    on. Default: no limit."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides which settings are tried; the trainings use `train.seed`."""


class Experiment(FiniteSettings):
    """Everything that one training run, or one sweep or search of them, depends on."""

    data: DataConfig
    model: ModelConfig
    techniques: Techniques = Techniques()
    train: TrainConfig
    scaling: ScalingConfig = ScalingConfig()
    sweep: SweepConfig | None = None
    search: SearchConfig | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        # A GPU can only add choices: what is wrong without one is wrong with one.
        techniques = resolve_techniques(self.techniques, self.model, gpu_available=False)
        pieces = self.scaling.num_logical_workers
        if self.train.batch_size % pieces:
            raise ValueError(
                f"train.batch_size must be a multiple of the logical workers ({pieces}), got {self.train.batch_size}"
            )
        if techniques.regularization == "layers" and self.train.batch_size // pieces < 2:
            raise ValueError(
                f"train.batch_size must give each of the {pieces} logical workers at least 2 samples for batch "
                f"normalization (techniques.regularization: layers), got {self.train.batch_size}. "
                f"Use {2 * pieces} or more, or techniques.regularization: penalty"
            )
        return self
