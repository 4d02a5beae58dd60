"""The sum over logical workers has the same bits for every worker count, in real process groups."""

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.training.gradients import GradientParts as Parts
from orchestrator.training.gradients import Reduction, all_reduce_sum, fixed_order_sum, share, subtrees

MOST_WORKERS = 8
SIZES = (1, 7, 1001)  # also fewer numbers than there are workers
CPU = torch.device("cpu")


class Found(NamedTuple):
    """What one worker saw in the world of one size."""

    sums_that_differ: list[str]
    trained: dict[int, str]
    """Bits of a small training, for each number of logical workers."""
    all_reduced: list[bytes]
    """Bits of the same sum, repeated."""
    all_reduce_error: float
    """In parts of the summed magnitudes."""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Found]]:
    """What every worker found, for each number of workers. The processes are started once for all of them."""
    folder = tmp_path_factory.mktemp("rendezvous")
    context = multiprocessing.get_context("forkserver")  # torch is imported once, not by each of the processes
    context.set_forkserver_preload(["pytest", "torch.distributed", "orchestrator.training.gradients"])
    with ProcessPoolExecutor(MOST_WORKERS, mp_context=context) as executor:
        of_ranks = [executor.submit(worker, rank, folder) for rank in range(MOST_WORKERS)]
        found = [future.result() for future in of_ranks]
    return {workers: [of_rank[workers] for of_rank in found[:workers]] for workers in range(2, MOST_WORKERS + 1)}


def worker(rank: int, folder: Path) -> dict[int, Found]:
    torch.set_num_threads(1)
    return {workers: look(rank, workers, folder) for workers in range(max(2, rank + 1), MOST_WORKERS + 1)}


def look(rank: int, workers: int, folder: Path) -> Found:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{workers}", rank=rank, world_size=workers, timeout=timedelta(seconds=60)
    )
    counts = range(workers, MOST_WORKERS + 1)
    found = Found(
        list(chain.from_iterable(sums_that_differ(rank, workers, logical_workers) for logical_workers in counts)),
        {logical_workers: train(rank, workers, logical_workers) for logical_workers in counts},
        [bits(all_reduced(rank, workers)) for _ in range(5)],
        all_reduce_error(all_reduced(rank, workers)),
    )
    dist.barrier()
    dist.destroy_process_group()
    return found


def sums_that_differ(rank: int, workers: int, logical_workers: int) -> list[str]:
    """Every sum whose bits are not the reference's; all share one scratch, as the steps of a training do."""
    own, found, scratch = share(logical_workers, rank=rank, workers=workers), [], torch.empty(0)
    for size in SIZES:
        parts_LN = parts(logical_workers, size)
        rows_KN = parts_LN[own.start : own.stop].clone()
        total_N = fixed_order_sum(rows_KN, workers=workers, logical_workers=logical_workers, scratch=scratch)
        if bits(total_N) != bits(reference(parts_LN)):
            found.append(f"L={logical_workers} W={workers} rank={rank} N={size}")
    return found


def parts(logical_workers: int, size: int) -> Tensor:
    """Numbers for which another order gives other bits, or a careless sum another sign of zero, in turns."""
    generator = torch.Generator().manual_seed(100 * size + logical_workers)
    normal = torch.randn(logical_workers, size, generator=generator)
    sign_L1 = (1 - 2 * (torch.arange(logical_workers) % 2))[:, None]
    kinds = (
        normal * 10.0 ** torch.randint(-12, 13, normal.shape, generator=generator),
        normal + 1e8 * sign_L1,  # cancels
        normal * 1e-40,  # subnormal
        torch.where(normal < 1, -0.0, 0.0),
    )
    return torch.stack(kinds)[torch.arange(size) % len(kinds), :, torch.arange(size)].T.contiguous()


def reference(parts_LN: Tensor) -> Tensor:
    """The order, written level by level."""
    level = list(parts_LN)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [left + right for left, right in pairs] + level[len(level) // 2 * 2 :]
    return level[0]


def bits(numbers: Tensor) -> bytes:
    return numbers.numpy().tobytes()


def train(rank: int, workers: int, logical_workers: int, *, every: int = 2) -> str:
    """The bits of a small network and its losses after some steps; the weights change every second step."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    own = share(logical_workers, rank=rank, workers=workers)
    rows, digest = Parts(network, rows=len(own), device=CPU), hashlib.sha256()
    for step in range(2 * every):
        rows.begin_step()
        for row, logical_worker in enumerate(own):
            torch.manual_seed(100 * step + logical_worker)
            rows.begin_row(row)
            loss = network(torch.randn(4, 3)).square().sum()
            loss.backward()
            rows.end_row(row, loss.detach())
        updates = step % every == every - 1
        total = rows.end_step(with_gradient=updates, workers=workers, logical_workers=logical_workers)
        digest.update(bits(total))
        if updates:
            with torch.no_grad():
                for p in network.parameters():
                    p.sub_(p.grad, alpha=0.01)
    for numbers in network.state_dict().values():
        digest.update(bits(numbers))
    return digest.hexdigest()


def all_reduced(rank: int, workers: int) -> Tensor:
    own = share(MOST_WORKERS, rank=rank, workers=workers)
    return all_reduce_sum(parts(MOST_WORKERS, 1001)[own.start : own.stop].clone(), workers=workers)


def all_reduce_error(total_N: Tensor) -> float:
    exact = parts(MOST_WORKERS, 1001).double()
    return ((total_N - exact.sum(0)).abs() / exact.abs().sum(0).clamp(min=1e-30)).max().item()


@pytest.mark.parametrize("workers", range(2, MOST_WORKERS + 1))
def test_any_worker_count_sums_to_the_bits_of_the_reference(workers: int, worlds: dict[int, list[Found]]) -> None:
    assert [found.sums_that_differ for found in worlds[workers]] == [[]] * workers


@pytest.mark.parametrize("logical_workers", range(1, MOST_WORKERS + 1))
def test_one_worker_sums_to_the_bits_of_the_reference(logical_workers: int) -> None:
    assert sums_that_differ(0, 1, logical_workers) == []


@pytest.mark.parametrize("logical_workers", range(2, MOST_WORKERS + 1))
def test_any_worker_count_trains_to_the_bits_of_one(logical_workers: int, worlds: dict[int, list[Found]]) -> None:
    trained = {train(0, 1, logical_workers)}
    for workers in range(2, logical_workers + 1):
        trained |= {found.trained[logical_workers] for found in worlds[workers]}
    assert len(trained) == 1


@pytest.mark.parametrize("workers", range(2, MOST_WORKERS + 1))
def test_an_all_reduce_is_close_and_the_same_for_one_worker_count(workers: int, worlds: dict[int, list[Found]]) -> None:
    assert len({found for each in worlds[workers] for found in each.all_reduced}) == 1
    assert worlds[workers][0].all_reduce_error <= 1e-6


def test_an_all_reduce_depends_on_the_worker_count(worlds: dict[int, list[Found]]) -> None:
    assert worlds[3][0].all_reduced != worlds[8][0].all_reduced


def test_the_order_is_a_tree_of_pairs() -> None:
    a, b, c, d, e, f, g = p = parts(7, 1001)
    expected = ((a + b) + (c + d)) + ((e + f) + g)
    assert bits(fixed_order_sum(p.clone(), workers=1, logical_workers=7)) == bits(expected)
    assert bits(fixed_order_sum(p[:5].clone(), workers=1, logical_workers=5)) == bits(((a + b) + (c + d)) + e)
    assert bits(fixed_order_sum(p.flip(0), workers=1, logical_workers=7)) != bits(expected)


@pytest.mark.parametrize("workers", range(1, 10))
@pytest.mark.parametrize("logical_workers", range(1, 20))
def test_shares_are_neighbours_that_differ_by_one_at_most(logical_workers: int, workers: int) -> None:
    shares = [share(logical_workers, rank=rank, workers=workers) for rank in range(workers)]
    assert list(chain(*shares)) == list(range(logical_workers))
    assert [len(s) for s in shares] == sorted((len(s) for s in shares), reverse=True)
    assert len(shares[0]) - len(shares[-1]) <= 1


def test_an_uneven_share_gives_the_first_workers_more() -> None:
    assert [share(4, rank=rank, workers=3) for rank in range(3)] == [range(2), range(2, 3), range(3, 4)]


@pytest.mark.parametrize("logical_workers", range(1, 33))
def test_subtrees_make_up_a_share_and_are_one_where_no_worker_has_more_than_two(logical_workers: int) -> None:
    for workers in range(1, logical_workers + 1):
        for rank in range(workers):
            own = share(logical_workers, rank=rank, workers=workers)
            found = subtrees(own, range(logical_workers))
            assert list(chain(*found)) == list(own)
            assert len(found) == 1 or logical_workers > 2 * workers


@pytest.mark.parametrize(("logical_workers", "workers"), [(8, 2), (16, 4), (32, 4), (12, 3), (20, 5)])
def test_shares_of_a_power_of_two_are_one_subtree(logical_workers: int, workers: int) -> None:
    tree = range(logical_workers)
    assert all(len(subtrees(share(logical_workers, rank=r, workers=workers), tree)) == 1 for r in range(workers))


@pytest.mark.parametrize("reduction", ["fixed_order", "all_reduce"])
def test_gradients_grow_until_they_are_asked_for_and_start_afresh_after_it(reduction: Reduction) -> None:
    network = nn.Linear(2, 1, bias=False)
    rows = Parts(network, rows=3, device=CPU)

    def step(value: float, *, with_gradient: bool) -> tuple[list[float] | None, float]:
        rows.begin_step()
        for row in range(3):
            rows.begin_row(row)
            network(torch.full((1, 2), value)).sum().backward()
            rows.end_row(row, torch.tensor(value))
        loss = rows.end_step(with_gradient=with_gradient, workers=1, logical_workers=3, reduction=reduction)
        return rows.gradient_P.tolist(), loss.item()

    assert step(1.0, with_gradient=False)[1] == 3.0
    assert step(2.0, with_gradient=True) == ([9.0, 9.0], 6.0)
    assert network.weight.grad is not None
    assert network.weight.grad.tolist() == [[9.0, 9.0]]
    assert step(4.0, with_gradient=True) == ([12.0, 12.0], 12.0)
