"""The sample order: every sample as often as promised, the same for every worker count, from any step on."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from models.counters import counter_key
from orchestrator.data.order import Buckets, Plan, permutation, plan_epoch, plan_stored, random_bits

plans = st.builds(
    lambda sizes, micro, workers, buckets, **rest: dict(
        rows_per_group=sizes,
        batch_size=micro * workers,
        logical_workers=workers,
        buckets=buckets and Buckets(np.random.default_rng(buckets[0]).integers(0, 50, sum(sizes)), buckets[1]),
        **rest,
    ),
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=8).filter(any),
    micro=st.integers(1, 9),
    workers=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    shuffle_rows=st.integers(1, 70),
    buckets=st.none() | st.tuples(st.integers(0, 100), st.integers(1, 5)),
)


def ids_of(plan: Plan, logical_worker: int, step: int) -> list[int]:
    return plan.sample_ids(logical_worker, step).tolist()


def ids_of_epoch(plan: Plan, steps: range | None = None) -> list[int]:
    steps = steps or range(plan.num_steps)
    return [i for step in steps for worker in range(plan.logical_workers) for i in ids_of(plan, worker, step)]


@settings(max_examples=500, deadline=None)
@given(plans)
def test_an_epoch_has_every_sample_exactly_once(arguments):
    plan = plan_epoch(**arguments, drop_last=False)
    assert sorted(ids_of_epoch(plan)) == list(range(sum(arguments["rows_per_group"])))
    assert plan.num_samples == sum(arguments["rows_per_group"])


@settings(max_examples=500, deadline=None)
@given(plans)
def test_drop_last_leaves_out_less_than_a_batch_and_repeats_nothing(arguments):
    total, batch_size = sum(arguments["rows_per_group"]), arguments["batch_size"]
    if batch_size > total:
        with pytest.raises(ConfigError, match=rf"must be at most the {total} samples .* got {batch_size}"):
            plan_epoch(**arguments, drop_last=True)
        return
    plan = plan_epoch(**arguments, drop_last=True)
    ids = ids_of_epoch(plan)
    assert len(ids) == len(set(ids)) == total - total % batch_size == plan.num_samples
    assert all(sum(plan.step_sizes(step)) == batch_size for step in range(plan.num_steps))


@settings(max_examples=500, deadline=None)
@given(plans, st.booleans())
def test_every_step_is_full_but_the_last_which_is_spread_evenly(arguments, drop_last):
    if drop_last and arguments["batch_size"] > sum(arguments["rows_per_group"]):
        return
    plan = plan_epoch(**arguments, drop_last=drop_last)
    for step in range(plan.num_steps):
        sizes = plan.step_sizes(step)
        assert sizes == [len(ids_of(plan, worker, step)) for worker in range(plan.logical_workers)]
        assert max(sizes) - min(sizes) <= 1
        assert 0 < sum(sizes) <= plan.micro_batch_size * plan.logical_workers
        assert sum(sizes) == arguments["batch_size"] or step == plan.num_steps - 1


@settings(max_examples=500, deadline=None)
@given(plans, st.data())
def test_a_fresh_plan_asked_for_any_step_gives_what_a_walk_to_it_gives(arguments, data):
    walked = plan_epoch(**arguments, drop_last=False)
    step = data.draw(st.integers(0, walked.num_steps - 1))
    everything = [ids_of_epoch(walked, range(s, s + 1)) for s in range(walked.num_steps)]
    assert ids_of_epoch(plan_epoch(**arguments, drop_last=False), range(step, walked.num_steps)) == [
        i for ids in everything[step:] for i in ids
    ]


@settings(max_examples=500, deadline=None)
@given(plans, st.data())
def test_the_windows_ahead_of_a_step_are_those_that_the_following_steps_need_in_their_order(arguments, data):
    plan = plan_epoch(**arguments, drop_last=False)
    worker = data.draw(st.integers(0, plan.logical_workers - 1))
    step = data.draw(st.integers(0, plan.num_steps - 1))
    needed = [slice.window for later in range(step, plan.num_steps) for slice in plan.slices(worker, later)]
    assert [*plan.windows_from(worker, step)] == sorted(set(needed)) == [*dict.fromkeys(needed)]


@settings(max_examples=500, deadline=None)
@given(plans)
def test_the_segments_of_all_windows_are_all_rows_once(arguments):
    plan = plan_epoch(**arguments, drop_last=False)
    rows = []
    for window in range(len(plan.window_starts) - 1):
        segments = plan.segments(window)
        assert [s.start for s in segments] == np.cumsum([0, *(s.rows for s in segments)])[:-1].tolist()
        assert sorted(plan.order(window)) == list(range(sum(s.rows for s in segments)))
        rows += [(s.group, row) for s in segments for row in range(s.first_row, s.first_row + s.rows)]
    assert sorted(rows) == [(g, row) for g, size in enumerate(arguments["rows_per_group"]) for row in range(size)]


def test_the_first_windows_are_small_so_that_the_first_batch_comes_soon_but_a_piece_that_fits_is_one():
    common = {"seed": 0, "epoch": 0, "batch_size": 20, "drop_last": False, "logical_workers": 2}
    ramped = plan_epoch([10] * 200, shuffle_rows=400, **common)
    assert np.diff(ramped.window_starts).tolist() == [100, 200, 400, 300] * 2
    assert np.diff(plan_epoch([10] * 200, shuffle_rows=1000, **common).window_starts).tolist() == [1000] * 2


def test_batches_hold_similar_lengths_in_random_order_where_samples_have_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, 4000)
    options = {"seed": 0, "epoch": 0, "logical_workers": 2, "shuffle_rows": 500, "batch_size": 32, "drop_last": False}

    def of_steps(bucket_batches: int) -> list[np.ndarray]:
        plan = plan_epoch([100] * 40, buckets=Buckets(lengths, bucket_batches), **options)
        return [lengths[plan.sample_ids(0, step)] for step in range(plan.num_steps)]

    def padded(steps: list[np.ndarray]) -> float:
        return sum(step.max() * len(step) for step in steps) / sum(step.sum() for step in steps)

    bucketed = of_steps(16)
    assert padded(of_steps(1)) > 1.8
    assert padded(bucketed) < 1.25
    means = np.array([step.mean() for step in bucketed])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # short ones do not come first


def test_the_order_differs_by_seed_and_by_epoch():
    common = {"logical_workers": 2, "shuffle_rows": 1000, "batch_size": 10, "drop_last": False}
    orders = [
        ids_of_epoch(plan_epoch([50] * 4, seed=seed, epoch=epoch, **common)) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_a_window_mixes_no_more_rows_than_it_holds():
    plan = plan_epoch([10] * 100, seed=3, epoch=0, logical_workers=1, shuffle_rows=50, batch_size=50, drop_last=False)
    for window in range(len(plan.window_starts) - 1):
        assert len(plan.segments(window)) <= 5


def test_neighbours_are_as_little_related_as_after_a_full_shuffle():
    """Data sorted by class, 16 row groups to a window: what a windowed shuffle loses against a full one."""
    labels = np.repeat(np.arange(10), 10_000)
    options = {"seed": 1, "epoch": 0, "logical_workers": 2, "shuffle_rows": 16_000, "batch_size": 512}
    plan = plan_epoch([1000] * 100, drop_last=False, **options)
    delivered = labels[ids_of_epoch(plan)]
    full = np.random.default_rng(0).permutation(labels)

    def correlation(order: np.ndarray) -> float:
        return float(np.corrcoef(order[:-1], order[1:])[0, 1])

    assert abs(correlation(full)) < 0.02
    assert correlation(labels) > 0.99
    assert correlation(delivered) < 0.1


def test_shuffling_is_fair_enough_for_a_chi_square_test():
    # Where sample 0 of 8 lands in 4000 epochs: 7 degrees of freedom, 0.9999 quantile 29.9.
    places = [
        ids_of_epoch(
            plan_epoch([2] * 4, seed=7, epoch=e, logical_workers=1, shuffle_rows=100, batch_size=8, drop_last=False)
        ).index(0)
        for e in range(4000)
    ]
    counts = np.bincount(places, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 29.9


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=8).filter(any),
    window_rows=st.integers(1, 70),
    batch_size=st.integers(1, 40),
)
def test_the_stored_order_is_every_sample_in_its_place_from_any_step_on(sizes, window_rows, batch_size):
    plan = plan_stored(sizes, window_rows=window_rows, batch_size=batch_size)
    everything = list(range(sum(sizes)))
    assert plan.num_samples == len(everything)
    steps = [everything[i : i + batch_size] for i in range(0, len(everything), batch_size)]
    assert [ids_of(plan, 0, step) for step in range(plan.num_steps)] == steps
    for step in range(plan.num_steps):
        needed = [taken.window for later in range(step, plan.num_steps) for taken in plan.slices(0, later)]
        assert [*plan.windows_from(0, step)] == sorted(set(needed))


def test_splitmix64_matches_its_published_stream():
    # The first outputs of Vigna's splitmix64.c with state 1234567.
    assert random_bits(3, key=1234567).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_the_order_is_the_one_that_earlier_runs_were_trained_with():
    """A change here breaks the promise that a resumed run sees the samples it would have seen."""
    assert counter_key(1, 2, 3) == 15020427595393229491
    assert permutation(10, key=counter_key(0)).tolist() == [5, 7, 8, 2, 9, 0, 3, 1, 6, 4]
    plan = plan_epoch([7, 5, 6, 2], seed=42, epoch=3, logical_workers=2, shuffle_rows=8, batch_size=6, drop_last=False)
    pieces = [[ids_of(plan, worker, step) for step in range(plan.num_steps)] for worker in range(2)]
    assert pieces == [
        [[3, 6, 2], [1, 4, 0], [5, 18, 7], [19]],
        [[8, 10, 11], [9, 13, 15], [16, 12, 17], [14]],
    ]
    texts = plan_epoch(
        [7, 5, 6, 2],
        seed=42,
        epoch=3,
        logical_workers=2,
        shuffle_rows=50,
        batch_size=6,
        drop_last=False,
        buckets=Buckets(lengths=np.arange(20) * 7 % 11, batches=2),
    )
    assert [ids_of(texts, 0, step) for step in range(4)] == [[19, 2, 18], [1, 6, 3], [0, 5, 7], [4]]
    large = plan_epoch(
        [2048] * 24 + [848],
        seed=0,
        epoch=0,
        logical_workers=4,
        shuffle_rows=8192,
        batch_size=512,
        drop_last=False,
    )
    order = np.array(ids_of_epoch(large), dtype="<i8")
    assert hashlib.sha256(order.tobytes()).hexdigest()[:16] == "c5a7099f9acdd88e"


def test_any_step_of_a_large_epoch_is_found_without_shuffling_what_comes_before(monkeypatch):
    plan = plan_epoch(
        [4096] * 25_000, seed=0, epoch=0, logical_workers=8, shuffle_rows=65_536, batch_size=512, drop_last=False
    )
    shuffled = []
    order = Plan.order
    monkeypatch.setattr(Plan, "order", lambda self, window: shuffled.append(window) or order(self, window))
    last = plan.sample_ids(7, plan.num_steps - 1)
    assert len(last) == 64
    assert shuffled == [len(plan.window_starts) - 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 7}, r"train.batch_size must be a multiple of the logical workers \(2\), got 7"),
        ({"rows_per_group": [0, 0]}, "must hold at least one sample, got 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change, message):
    arguments = {
        "rows_per_group": [5, 5],
        "seed": 0,
        "epoch": 0,
        "logical_workers": 2,
        "shuffle_rows": 9,
        "batch_size": 4,
        "drop_last": False,
    }
    with pytest.raises(ConfigError, match=message):
        plan_epoch(**arguments | change)
