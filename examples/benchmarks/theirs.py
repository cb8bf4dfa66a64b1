# pyright: basic, reportMissingImports=false
"""The same training steps in PyTorch, with TorchJD or ``torch_mtadam.py``."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from problems import VOCABULARY, Size, make_problem
from torch import nn
from torch.nn import functional
from torch_mtadam import MTAdam

LEARNING_RATE = 1e-4

# --- networks ----------------------------------------------------------------------


class MLP(nn.Module):
    def __init__(self, size: Size, inputs: int, num_terms: int):
        super().__init__()
        widths = [inputs, *[size.width] * size.depth, num_terms]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, 4, -1)
        query, key, value = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        # Written out: the fused attention has no batched derivative for autojac.
        scores = query @ key.transpose(2, 3) / math.sqrt(width // 4)
        mixed = torch.softmax(scores, dim=-1) @ value
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.down(hidden)


class Transformer(nn.Module):
    def __init__(self, size: Size, num_terms: int):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, size.width)
        self.places = nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size.width) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, num_terms)
        self.register_buffer("numbers", torch.arange(size.length), persistent=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(self.numbers)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class Conv(nn.Module):
    def __init__(self, size: Size, num_terms: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * ((size.pixels - 4) // 2) ** 2, 128)
        self.fc2 = nn.Linear(128, num_terms)

    def forward(self, x):
        x = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        # Flattened with the channels last, as in JAX, so that the weights agree.
        x = functional.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)
        return self.fc2(functional.relu(self.fc1(x)))


def load(model: nn.Module, arrays: dict[str, np.ndarray]) -> nn.Module:
    """Copies the arrays into the module, in PyTorch's order of the axes."""
    for name, param in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        value = arrays[name]
        if isinstance(owner, nn.Linear) and value.ndim == 2:
            value = value.T
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        param.data = torch.tensor(np.ascontiguousarray(value))
    return model


# --- steps -------------------------------------------------------------------------


def variants(model: str, method: str) -> list[str]:
    """The ways their step can be taken; the fastest one is compared."""
    if method == "adam":
        return ["torch.optim.Adam"]
    if method == "mtadam":
        ways = ["one by one", "batched"]
        return ways + ["by rows"] * (model == "conv")
    return ["autogram", "autojac", "autojac, one by one"]


class Runner:
    """A model, an optimizer and a step; eager, so there is nothing to compile."""

    compile_seconds = 0.0

    def __init__(self, model: str, size: Size, num_terms: int, method: str, name: str):
        self.kind, self.size, self.num_terms = model, size, num_terms
        self.method, self.variant = method, name
        self.arrays, batch = make_problem(model, size, num_terms)
        self.batch = {key: torch.tensor(value) for key, value in batch.items()}
        if model == "conv":
            self.batch["x"] = self.batch["x"].permute(0, 3, 1, 2).contiguous()
            self.batch["y"] = self.batch["y"].long()
            self.is_class = functional.one_hot(self.batch["y"], num_terms).float()

    def start(self) -> None:
        if self.kind == "mlp":
            inputs = self.batch["x"].shape[1]
            model = MLP(self.size, inputs, self.num_terms)
        else:
            kinds = {"transformer": Transformer, "conv": Conv}
            model = kinds[self.kind](self.size, self.num_terms)
        self.model: Any = load(model, self.arrays)
        self.params: Any = list(model.parameters())
        if self.method == "mtadam":
            self.optimizer: Any = MTAdam(
                self.params,
                self.num_terms,
                LEARNING_RATE,
                batched=self.variant == "batched",
                one_first_moment=self.variant == "one first moment",
            )
        else:
            self.optimizer = torch.optim.Adam(self.params, LEARNING_RATE, fused=True)
        if self.method not in ("adam", "mtadam"):
            self._start_torchjd()

    def _start_torchjd(self) -> None:
        from torchjd import aggregation
        from torchjd.autogram import Engine

        name = {"mgda": "MGDA", "pcgrad": "PCGrad", "upgrad": "UPGrad"}[self.method]
        if self.variant == "autogram":
            self.engine: Any = Engine(self.model, batch_dim=None)
            self.weighting: Any = getattr(aggregation, f"{name}Weighting")()
        else:
            self.aggregator: Any = getattr(aggregation, name)()

    def stop(self) -> None:
        self.model = self.params = self.optimizer = self.engine = None

    def losses(self, rows: Any = slice(None)) -> torch.Tensor:
        """The losses [K]; with ``rows``, the mean loss of these rows."""
        outputs = self.model(self.batch["x"][rows])
        if self.kind != "conv":
            return (outputs - self.batch["y"]).square().mean(dim=0)
        labels = self.batch["y"][rows]
        if not isinstance(rows, slice):
            return functional.cross_entropy(outputs, labels)
        errors = functional.cross_entropy(outputs, labels, reduction="none")
        return errors @ self.is_class / self.is_class.sum(dim=0)

    def step(self) -> np.ndarray:
        """One training step; the losses before it."""
        if self.variant == "by rows":
            return self._step_by_rows()
        losses = self.losses()
        found = losses.detach().numpy().copy()
        if self.method == "mtadam":
            self.optimizer.step(losses)
            return found
        if self.method == "adam":
            losses.sum().backward()
        elif self.variant == "autogram":
            losses.backward(self.weighting(self.engine.compute_gramian(losses)))
        else:
            self._autojac(losses)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return found

    def _autojac(self, losses: torch.Tensor) -> None:
        from torchjd.autojac import backward, jac_to_grad

        one_by_one = self.variant.endswith("one by one")
        backward(
            losses, inputs=self.params, parallel_chunk_size=1 if one_by_one else None
        )
        # The option that saves memory, and time where the concatenation is large.
        jac_to_grad(
            self.params, self.aggregator, optimize_gramian_computation=one_by_one
        )

    def _step_by_rows(self) -> np.ndarray:
        """Forward and backward over each class's own rows, one class at a time."""
        found = []

        def each():
            for k in range(self.num_terms):
                loss = self.losses((self.batch["y"] == k).nonzero().squeeze(1))
                found.append(loss.item())
                yield loss

        self.optimizer.step(each())
        return np.array(found, np.float32)

    def program_memory(self) -> dict[str, int]:
        return {}


def set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
