"""Sums what the logical workers computed in a fixed order, so that the bits do not depend on the worker count."""

import torch
import torch.distributed as dist
from torch import Tensor

# L = logical workers, W = workers, K = L / W logical workers of one worker, N = numbers to sum, C = ceil(N / W)


def fixed_order_sum(parts_KN: Tensor, *, workers: int) -> Tensor:
    """Return the sum over all logical workers, ``((part_0 + part_1) + part_2) + …``, the same bits on every worker.

    Each worker sums one ``C``-long stretch for all: an all-to-all brings it that stretch of every part, an
    all-gather spreads the sums. With one logical worker per worker this moves as many bytes as an all-reduce; with
    K of them, K times as many in its first half.

    Args:
        parts_KN: this worker's parts, in the order of its logical workers; worker w holds those from w·K on.
        workers: size of the default process group; 1 needs none.

    Shape:
        [K, N] -> [N]
    """
    if workers == 1:
        return _sum_in_order(parts_KN)
    k, n = parts_KN.shape
    if workers == 2 and k == 1:  # a + b has only one order
        total_N = parts_KN[0].clone()
        dist.all_reduce(total_N)
        return total_N
    c = -(-n // workers)
    padded_KWC = torch.nn.functional.pad(parts_KN, (0, c * workers - n)).view(k, workers, c)
    sent_WKC = padded_KWC.transpose(0, 1).contiguous()
    received_WKC = torch.empty_like(sent_WKC)
    dist.all_to_all_single(received_WKC, sent_WKC)
    stretch_C = _sum_in_order(received_WKC.view(workers * k, c))
    total = parts_KN.new_empty(workers * c)
    dist.all_gather_into_tensor(total, stretch_C)
    return total[:n]


def _sum_in_order(parts_LN: Tensor) -> Tensor:
    total_N = parts_LN[0].clone()
    for part_N in parts_LN[1:]:
        total_N += part_N
    return total_N
