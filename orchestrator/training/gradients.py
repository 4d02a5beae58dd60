"""Sums what the logical workers computed in a fixed order, so that the bits do not depend on the worker count.

The order is a binary tree over the logical workers: neighbours are added in pairs, then pairs of pairs, and what is
left over at the end of a level goes up as it is. Five: ((0 + 1) + (2 + 3)) + 4. A worker adds the subtrees that lie
wholly within its own share before anything is sent, so that the traffic seldom grows with the logical workers: each
worker sends one row wherever all have the same power of two, and wherever none has more than two.
"""

from collections.abc import Mapping
from functools import cache
from itertools import zip_longest
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

# L = logical workers, W = workers, K = logical workers of this worker (L / W where that is whole)
# N = numbers in a row: P of the gradient, then the running statistics, then the votes, then the loss
# M = subtrees that all workers send, W at least; C = numbers that this worker sums for all, about N / W

Reduction = Literal["fixed_order", "all_reduce"]


def share(logical_workers: int, *, rank: int, workers: int) -> range:
    """The logical workers that one worker runs: neighbours, and the first ``L % W`` workers have one more."""
    each, left_over = divmod(logical_workers, workers)
    start = rank * each + min(rank, left_over)
    return range(start, start + each + (rank < left_over))


class GradientParts:
    """One row of numbers per logical worker of this worker: its gradient, its running statistics, its loss.

    Backward adds straight into the rows, because the parameters' gradients are views of them; and the sum over all
    logical workers is left in the first, so that nothing is copied.
    """

    def __init__(self, network: nn.Module, *, rows: int, device: torch.device) -> None:
        self._parameters = list(network.parameters())
        self._statistics = running_statistics(network)
        self.num_gradient = sum(p.numel() for p in self._parameters)
        num_statistics = sum(s.numel() for s in self._statistics)
        self.rows_KN = torch.zeros(rows, self.num_gradient + num_statistics + 2, device=device)
        self.votes = torch.zeros((), device=device)
        self._scratch = torch.empty(0, device=device)
        self._summed_from = self.rows_KN.shape[1]
        self._before = [s.clone() for s in self._statistics]
        self._counters = [b for name, b in network.named_buffers() if name.endswith("num_batches_tracked")]
        self._steps = [c.clone() for c in self._counters]
        self._gradients = [self._gradient_views(row_N) for row_N in self.rows_KN]
        self.gradient_P = self.rows_KN[0, : self.num_gradient]
        """The sum over all logical workers, where `end_step` leaves it."""

    def begin_step(self) -> None:
        """Clear what the last step summed; remember the running statistics, which every logical worker starts from."""
        self.rows_KN[:, self._summed_from :].zero_()
        for before, now in zip((*self._before, *self._steps), (*self._statistics, *self._counters), strict=True):
            before.copy_(now)

    def begin_row(self, row: int) -> None:
        """Let the next backward add into this row."""
        for s, before in zip(self._statistics, self._before, strict=True):
            s.copy_(before)
        self._bind(self._gradients[row])

    def end_row(self, row: int, loss: Tensor | None) -> None:
        """Keep what the forward pass made of the running statistics, and add the loss."""
        offset = self.num_gradient
        for s in self._statistics:
            self.rows_KN[row, offset : offset + s.numel()] = s.flatten()
            offset += s.numel()
        if loss is not None:
            self.rows_KN[row, -1] += loss

    def vote(self) -> None:
        """Count a vote, which every worker sees in ``votes`` after the next `end_step`."""
        self.rows_KN[0, -2] += 1

    def end_step(
        self, *, with_gradient: bool, workers: int, logical_workers: int, reduction: Reduction = "fixed_order"
    ) -> Tensor:
        """Sum over all logical workers, and average the running statistics; return the loss.

        The gradient is `gradient_P` then, bound to the parameters until the next step begins.

        Args:
            with_gradient: ``False`` leaves the gradients to grow over several steps.
            workers: size of the default process group.
            logical_workers: over all workers.
            reduction: ``all_reduce`` gives bits that depend on the worker count.
        """
        first = 0 if with_gradient else self.num_gradient
        if reduction == "fixed_order":
            total_N = fixed_order_sum(
                self.rows_KN[:, first:], workers=workers, logical_workers=logical_workers, scratch=self._scratch
            )
        else:
            total_N = all_reduce_sum(self.rows_KN[:, first:], workers=workers)
        self._summed_from = first
        offset = self.num_gradient - first
        for s in self._statistics:
            s.copy_((total_N[offset : offset + s.numel()] / logical_workers).view_as(s))
            offset += s.numel()
        for counter, steps in zip(self._counters, self._steps, strict=True):
            counter.copy_(steps + 1)  # a step counts once, however many logical workers ran here
        loss, self.votes = total_N[-1].clone(), total_N[-2].clone()
        self._bind(self._gradients[0])
        return loss

    def _gradient_views(self, flat: Tensor) -> list[Tensor]:
        """Views with each parameter's own strides, so that channels_last gradients need no copy."""
        views, offset = [], flat.storage_offset()
        for p in self._parameters:
            views.append(flat.as_strided(p.shape, p.stride(), offset))
            offset += p.numel()
        return views

    def _bind(self, gradients: list[Tensor]) -> None:
        for p, gradient in zip(self._parameters, gradients, strict=True):
            p.grad = gradient


def fixed_order_sum(rows_KN: Tensor, *, workers: int, logical_workers: int, scratch: Tensor | None = None) -> Tensor:
    """Sum over all logical workers in the order of the tree: the same bits on every worker, and for every worker count.

    Each worker sums one stretch of C numbers for all: an all-to-all brings it that stretch of every subtree, another
    spreads the sums. Where every worker sends one subtree, that is as many bytes as a ring all-reduce moves.

    Args:
        rows_KN: of this worker's logical workers, see `share`. The sum takes the place of the first row; the others
            hold nothing of use afterwards.
        workers: size of the default process group, at most ``logical_workers``; 1 needs no group.
        logical_workers: over all workers.
        scratch: memory to receive in, of any size; kept from step to step, because fresh pages take time.

    Returns:
        The first row.

    Shape:
        [K, N] -> [N]
    """
    rank = dist.get_rank() if workers > 1 else 0
    own = share(logical_workers, rank=rank, workers=workers)
    leaves = {range(i, i + 1): row_N for i, row_N in zip(own, rows_KN, strict=True)}
    of_all = _subtrees_of_all(logical_workers, workers)
    sums = [_sum_tree(leaves, subtree) for subtree in of_all[rank]]
    if workers == 2 and all(len(sent) == 1 for sent in of_all):  # a + b has only one order
        dist.all_reduce(sums[0])
    elif workers > 1:
        _exchange(sums, of_all, rank=rank, scratch=rows_KN.new_empty(0) if scratch is None else scratch)
    return rows_KN[0]


def all_reduce_sum(rows_KN: Tensor, *, workers: int) -> Tensor:
    """Sum this worker's rows, then let the process group add the workers' sums in an order of its own.

    The result is the same on every worker. On gloo it is also the same in every repetition with one worker count, its
    order being a function of size and count; NCCL chooses its algorithm by the topology that it finds and promises
    nothing. Another worker count gives other bits, about 1e-7 of the summed magnitudes away.

    Args:
        rows_KN: of this worker's logical workers. The sum takes the place of the first row; the others hold nothing
            of use afterwards.
        workers: size of the default process group; 1 needs none.

    Returns:
        The first row.

    Shape:
        [K, N] -> [N]
    """
    total_N = _sum_tree({range(i, i + 1): row_N for i, row_N in enumerate(rows_KN)}, range(len(rows_KN)))
    if workers > 1:
        dist.all_reduce(total_N)
    return total_N


def subtrees(part: range, tree: range) -> list[range]:
    """The largest subtrees that lie wholly within ``part``, in order; together they are all of ``part``."""
    if part.start <= tree.start and tree.stop <= part.stop:
        return [tree]
    if tree.stop <= part.start or part.stop <= tree.start:
        return []
    left, right = _halves(tree)
    return subtrees(part, left) + subtrees(part, right)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of batch normalization, in a fixed order."""
    return [b for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))]


def _exchange(sums: list[Tensor], of_all: tuple[list[range], ...], *, rank: int, scratch: Tensor) -> None:
    """Turn ``sums[0]`` into the sum of all workers' subtrees.

    Args:
        sums: over this worker's subtrees.
        of_all: the subtrees that every worker sends.
        rank: this worker's.
        scratch: memory to receive in.
    """
    workers, total_N = len(of_all), sums[0]
    sizes = [len(stretch) for stretch in total_N.tensor_split(workers)]
    m, c = sum(len(sent) for sent in of_all), sizes[rank]
    received_MC = scratch.resize_(m * c).view(m, c)  # keeps its memory where that is large enough
    arriving: list[range] = []
    pending: list[dist.Work] = []
    for sum_N, sent in zip_longest(sums, zip_longest(*of_all)):  # the first subtree of every worker, the second, …
        come = [subtree for subtree in sent if subtree is not None]
        come_MC = received_MC[len(arriving) : len(arriving) + len(come)]
        pending.append(_all_to_all(come_MC.view(-1), sum_N, [c * (subtree is not None) for subtree in sent], sizes))
        arriving += come
    for work in pending:
        work.wait()
    stretch_C = _sum_tree(dict(zip(arriving, received_MC, strict=True)), range(of_all[-1][-1].stop))
    received_MC[1:workers] = stretch_C  # an all-to-all again: gloo's all-gather wants equal sizes, and copies
    _all_to_all(total_N, scratch[: workers * c], sizes, [c] * workers).wait()


def _all_to_all(received: Tensor, sent: Tensor | None, received_sizes: list[int], sent_sizes: list[int]) -> dist.Work:
    """Begin an all-to-all of flat tensors; a worker that has nothing to send receives all the same."""
    if sent is None:
        sent, sent_sizes = received[:0], [0] * len(sent_sizes)
    work: dist.Work = dist.all_to_all_single(received, sent, received_sizes, sent_sizes, async_op=True)
    return work


@cache
def _subtrees_of_all(logical_workers: int, workers: int) -> tuple[list[range], ...]:
    tree = range(logical_workers)
    shares = (share(logical_workers, rank=rank, workers=workers) for rank in range(workers))
    return tuple(subtrees(part, tree) for part in shares)


def _sum_tree(sums: Mapping[range, Tensor], tree: range) -> Tensor:
    """Add up, in place, the sums over subtrees to the one over ``tree``; it lies in the first of them."""
    if tree in sums:
        return sums[tree]
    left, right = _halves(tree)
    return _sum_tree(sums, left).add_(_sum_tree(sums, right))


def _halves(tree: range) -> tuple[range, range]:
    """The left one is the largest power of two that leaves something for the right."""
    middle = tree.start + (1 << (len(tree) - 1).bit_length() - 1)
    return range(tree.start, middle), range(middle, tree.stop)
