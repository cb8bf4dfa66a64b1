# pyright: basic, reportMissingImports=false
"""MTAdam in PyTorch, written from Alg. 1 of the paper for comparison.

It reads the algorithm as the authors' code does: a term's norm starts at its first
value, and the anchor of a parameter is the first term whose norm there exceeds 1e-10.
As in Alg. 1, every term has its own first and second moment.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

SILENT = 1e-10


class MTAdam(torch.optim.Optimizer):
    """``step(losses)`` differentiates each loss and takes one MTAdam step.

    Args:
      params: The parameters.
      num_terms: K, the number of losses.
      lr: Learning rate.
      betas: Decay of the first moments, of the second moments, and of the norms.
      eps: Added to the root of the largest second moment.
      batched: Whether all K gradients come from one vectorised backward pass, which is
        faster for small tensors and holds K gradients; otherwise one after another.
      one_first_moment: Whether to keep the moving average of the sum instead of the
        sum of K moving averages. Not in the paper; the result is the same, and what it
        saves can then be told from what the framework saves.
    """

    def __init__(
        self,
        params: Any,
        num_terms: int,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9),
        eps: float = 1e-8,
        batched: bool = False,
        one_first_moment: bool = False,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self.num_terms, self.batched = num_terms, batched
        self.firsts = 1 if one_first_moment else num_terms
        self.steps = 0
        (self.group,) = self.param_groups  # one set of parameters is enough here
        self.params: list[torch.Tensor] = self.group["params"]
        for param in self.params:
            self.state[param] = {
                "first": [torch.zeros_like(param) for _ in range(self.firsts)],
                "second": [torch.zeros_like(param) for _ in range(num_terms)],
                "norms": [0.0] * num_terms,
            }

    def step(self, losses: Sequence[torch.Tensor] | torch.Tensor) -> None:  # type: ignore[override]
        self.steps += 1
        works = [_Work() for _ in self.params]
        if self.batched:
            assert isinstance(losses, torch.Tensor)
            stacked = self._differentiate(losses, torch.eye(self.num_terms))
            for i in range(self.num_terms):
                self._add_term(i, [leaf[i] for leaf in stacked], works)
        else:
            for i, loss in enumerate(losses):
                last = i == self.num_terms - 1
                self._add_term(i, self._differentiate(loss, retain=not last), works)
        self._update(works)

    def _differentiate(self, losses, cotangents=None, retain=False):
        return torch.autograd.grad(
            losses,
            self.params,
            cotangents,
            is_grads_batched=cotangents is not None,
            retain_graph=retain,
            allow_unused=True,
            materialize_grads=True,
        )

    @torch.no_grad()
    def _add_term(self, i: int, grads: Sequence[torch.Tensor], works: list) -> None:
        b1, b2, b3 = self.group["betas"]
        # Parameter by parameter, so that a tensor stays in the cache for all that is
        # done with it.
        for param, grad, work in zip(self.params, grads, works, strict=True):
            state = self.state[param]
            norm = torch.linalg.vector_norm(grad).item()
            if self.steps > 1:
                norm = b3 * state["norms"][i] + (1 - b3) * norm
            state["norms"][i] = norm
            ratio = 1.0
            if norm > SILENT:
                work.anchor = work.anchor or norm
                ratio = work.anchor / norm
            # The balanced gradient, ratio * grad, is never written down.
            second = state["second"][i]
            second.mul_(b2).addcmul_(grad, grad, value=(1 - b2) * ratio**2)
            if work.largest is None:
                work.largest = second.clone()
            else:
                torch.maximum(work.largest, second, out=work.largest)
            first = state["first"][min(i, self.firsts - 1)]
            if i < self.firsts:
                first.mul_(b1)
            first.add_(grad, alpha=(1 - b1) * ratio)
            if self.firsts == 1:
                work.total = first
            elif work.total is None:
                work.total = first.clone()
            else:
                work.total.add_(first)

    @torch.no_grad()
    def _update(self, works: list) -> None:
        b1, b2, _ = self.group["betas"]
        rate = self.group["lr"] / (1 - b1**self.steps)
        root = math.sqrt(1 - b2**self.steps)
        for param, work in zip(self.params, works, strict=True):
            scale = work.largest.sqrt_().div_(root).add_(self.group["eps"])
            param.addcdiv_(work.total, scale, value=-rate)


class _Work:
    """What a step gathers for one parameter over the terms."""

    def __init__(self):
        self.anchor: float = 0.0
        self.total: Any = None  # sum of the first moments
        self.largest: Any = None  # largest second moment
