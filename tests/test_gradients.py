"""The sum over logical workers has the same bits for every worker count, in real process groups."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from orchestrator.gradients import fixed_order_sum
from tests.ports import free_port

L, N = 12, 1001


def parts() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    magnitudes = torch.logspace(-6, 6, L)[:, None]  # so different that another order gives other bits
    return torch.randn(L, N, generator=generator) * magnitudes


def worker(rank: int, workers: int, port: int, results: "multiprocessing.SimpleQueue[tuple[int, list[float]]]") -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    each = L // workers
    total = fixed_order_sum(parts()[rank * each : (rank + 1) * each], workers=workers)
    results.put((rank, total.tolist()))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_any_worker_count_gives_the_bits_of_one(workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    port = free_port()
    processes = [context.Process(target=worker, args=(rank, workers, port, results)) for rank in range(workers)]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    expected = fixed_order_sum(parts(), workers=1).tolist()
    assert [found[rank] == expected for rank in range(workers)] == [True] * workers


def test_the_order_matters_for_these_numbers() -> None:
    assert not torch.equal(fixed_order_sum(parts(), workers=1), fixed_order_sum(parts().flip(0), workers=1))
