"""Sums what the logical workers computed in a fixed order, so that the bits do not depend on the worker count."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

# L = logical workers, W = workers, K = L / W logical workers of one worker, C = ceil(N / W)
# N = numbers in a row: P of the gradient, then the running statistics, then the loss


class Parts:
    """One row of numbers per logical worker of this worker: its gradient, its running statistics, its loss.

    Backward adds straight into the rows, because the parameters' gradients are views of them.
    """

    def __init__(self, network: nn.Module, *, rows: int, device: torch.device) -> None:
        self._parameters = list(network.parameters())
        self._statistics = running_statistics(network)
        self.num_gradient = sum(p.numel() for p in self._parameters)
        num_statistics = sum(s.numel() for s in self._statistics)
        self.rows_KN = torch.zeros(rows, self.num_gradient + num_statistics + 1, device=device)
        self._before = [s.clone() for s in self._statistics]
        self._counters = [b for name, b in network.named_buffers() if name.endswith("num_batches_tracked")]
        self._steps = [c.clone() for c in self._counters]
        self._gradients = [self._gradient_views(row_N) for row_N in self.rows_KN]

    def begin_step(self) -> None:
        """Remember the running statistics: every logical worker starts from the same."""
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

    def end_step(self, *, with_gradient: bool, workers: int, logical_workers: int) -> tuple[Tensor | None, Tensor]:
        """Sum over all logical workers; average the running statistics; clear what was summed.

        Args:
            with_gradient: ``False`` leaves the gradients to grow over several steps.
            workers: size of the default process group.
            logical_workers: over all workers.

        Returns:
            The gradient, flat and bound to the parameters, or ``None``; and the loss.
        """
        first = 0 if with_gradient else self.num_gradient
        total_N = fixed_order_sum(self.rows_KN[:, first:], workers=workers)
        self.rows_KN[:, first:].zero_()
        offset = self.num_gradient - first
        for s in self._statistics:
            s.copy_((total_N[offset : offset + s.numel()] / logical_workers).view_as(s))
            offset += s.numel()
        for counter, steps in zip(self._counters, self._steps, strict=True):
            counter.copy_(steps + 1)  # a step counts once, however many logical workers ran here
        if not with_gradient:
            return None, total_N[-1]
        self._bind(self._gradient_views(total_N))
        return total_N[: self.num_gradient], total_N[-1]

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


def fixed_order_sum(parts_KN: Tensor, *, workers: int) -> Tensor:
    """Return ``((part_0 + part_1) + part_2) + …`` over all logical workers, the same bits on every worker.

    Each worker sums one stretch of length C for all: an all-to-all brings it that stretch of every part, an
    all-gather spreads the sums. With one logical worker per worker this moves as many bytes as an all-reduce;
    with K of them, K times as many in its first half.

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
    padded_KWC = nn.functional.pad(parts_KN, (0, c * workers - n)).view(k, workers, c)
    sent_WKC = padded_KWC.transpose(0, 1).contiguous()
    received_WKC = torch.empty_like(sent_WKC)
    dist.all_to_all_single(received_WKC, sent_WKC)
    stretch_C = _sum_in_order(received_WKC.view(workers * k, c))
    total_WC = parts_KN.new_empty(workers, c)
    dist.all_gather(list(total_WC), stretch_C)
    return total_WC.flatten()[:n]


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of batch normalization, in a fixed order."""
    return [b for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))]


def _sum_in_order(parts_LN: Tensor) -> Tensor:
    total_N = parts_LN[0].clone()
    for part_N in parts_LN[1:]:
        total_N += part_N
    return total_N
