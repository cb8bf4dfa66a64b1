# pyright: basic, reportMissingImports=false
"""The same training steps in PyTorch, with TorchJD or ``torch_mtadam.py``."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from cases import OUTPUTS
from problems import HEAD, VOCABULARY, Size, make_problem
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


class Trunk(nn.ModuleList):
    def forward(self, x):
        for layer in self:
            x = functional.relu(layer(x))
        return x


class Head(nn.ModuleList):
    def forward(self, features):
        return self[1](functional.relu(self[0](features)))


class Heads(nn.Module):
    def __init__(self, size: Size, inputs: int, num_terms: int):
        super().__init__()
        widths = [inputs, *[size.width] * size.depth]
        self.trunk = Trunk(nn.Linear(a, b) for a, b in pairwise(widths))
        self.heads: Any = nn.ModuleList(
            Head([nn.Linear(size.width, HEAD), nn.Linear(HEAD, 1)])
            for _ in range(num_terms)
        )

    def losses(self, features, targets):
        """A list: each has a graph of its own above the features."""
        return [
            (head(features)[:, 0] - targets[:, k]).square().mean()
            for k, head in enumerate(self.heads)
        ]


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
    def __init__(self, size: Size, num_terms: int, one_by_row: bool = False):
        super().__init__()
        self.one_by_row = one_by_row
        self.tokens = nn.Embedding(VOCABULARY, size.width)
        self.places = nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size.width) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, num_terms)
        self.register_buffer("numbers", torch.arange(size.length), persistent=False)

    def forward(self, tokens):
        # The engine for rows asks that every layer's input has one entry for each.
        numbers: Any = self.numbers
        if self.one_by_row:
            numbers = numbers.expand(len(tokens), -1)
        x = self.tokens(tokens) + self.places(numbers)
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


def variants(model: str, method: str, terms: str = "outputs") -> list[str]:
    """The ways their step can be taken; the fastest one is compared."""
    if method == "adam":
        return ["torch.optim.Adam"]
    if method == "mtadam":
        ways = ["one by one", "batched"]
        return ways + ["by rows"] * (model == "conv")
    if terms == "rows":
        return ["autogram, batch_dim=0"]
    if terms == "features":
        return ["head by head", "jac at the features"]
    if terms == "trunk":
        return ["mtl_backward", "mtl_backward, one by one", "autogram of the trunk"]
    return ["autogram", "autojac", "autojac, one by one"]


class Runner:
    """A model, an optimizer and a step; eager, so there is nothing to compile."""

    compile_seconds = 0.0

    def __init__(
        self,
        model: str,
        size: Size,
        num_terms: int,
        method: str,
        name: str,
        terms: str = "outputs",
        device: str = "cpu",
    ):
        self.device = device
        self.kind, self.size, self.num_terms = model, size, num_terms
        self.method, self.variant, self.terms = method, name, terms
        self.outputs = OUTPUTS if terms == "rows" else num_terms
        self.arrays, batch = make_problem(model, size, self.outputs)
        self.batch = {k: torch.tensor(value).to(device) for k, value in batch.items()}
        if model == "conv":
            self.batch["x"] = self.batch["x"].permute(0, 3, 1, 2).contiguous()
            self.batch["y"] = self.batch["y"].long()
            self.is_class = functional.one_hot(self.batch["y"], self.outputs).float()

    def start(self) -> None:
        inputs = self.batch["x"].shape[1]
        if self.kind in ("mlp", "heads"):
            kind = MLP if self.kind == "mlp" else Heads
            model: nn.Module = kind(self.size, inputs, self.outputs)
        elif self.kind == "transformer":
            model = Transformer(self.size, self.outputs, self.terms == "rows")
        else:
            model = Conv(self.size, self.outputs)
        self.model: Any = load(model, self.arrays).to(self.device)
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
        self.weighting: Any = getattr(aggregation, f"{name}Weighting")()
        self.aggregator: Any = getattr(aggregation, name)()
        if self.variant.startswith("autogram"):
            of_trunk = self.variant.endswith("trunk")
            self.engine: Any = Engine(
                self.model.trunk if of_trunk else self.model,
                batch_dim=0 if self.terms == "rows" else None,
            )

    def stop(self) -> None:
        self.model = self.params = self.optimizer = self.engine = None

    def losses(self, rows: Any = slice(None)) -> torch.Tensor:
        """The losses [K]; with ``rows``, the mean loss of these rows."""
        outputs = self.model(self.batch["x"][rows])
        by_row = self.terms == "rows"
        if self.kind != "conv":
            squares = (outputs - self.batch["y"]).square()
            return squares.mean(dim=1 if by_row else 0)
        labels = self.batch["y"][rows]
        if not isinstance(rows, slice):
            return functional.cross_entropy(outputs, labels)
        errors = functional.cross_entropy(outputs, labels, reduction="none")
        if by_row:
            return errors
        return errors @ self.is_class / self.is_class.sum(dim=0)

    def step(self) -> np.ndarray:
        """One training step; the losses before it."""
        if self.variant == "by rows":
            return self._step_by_rows()
        if self.kind == "heads":
            return self._step_of_heads()
        losses = self.losses()
        found = losses.detach().cpu().numpy().copy()
        if self.method == "mtadam":
            self.optimizer.step(losses)
            return found
        if self.method == "adam":
            losses.sum().backward()
        elif self.variant.startswith("autogram"):
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

    def _step_of_heads(self) -> np.ndarray:
        """One step of a trunk with heads; the heads receive their own gradients."""
        model, variant = self.model, self.variant
        features = model.trunk(self.batch["x"])
        at_features = variant in ("head by head", "jac at the features")
        below = features.detach().requires_grad_() if at_features else features
        each = model.losses(below, self.batch["y"])
        losses = torch.stack(each)
        if at_features:
            features.backward(self._at_the_features(each, below))
        elif variant == "autogram of the trunk":
            weights = self.weighting(self.engine.compute_gramian(losses))
            (along,) = torch.autograd.grad(losses, features, weights, retain_graph=True)
            losses.sum().backward(inputs=list(model.heads.parameters()))
            features.backward(along)
        else:
            self._mtl_backward(each, features)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses.detach().cpu().numpy().copy()

    def _at_the_features(self, each: list[Any], below: Any) -> torch.Tensor:
        """The weighted gradient at the features; fills in the heads' gradients."""
        from torchjd.autojac import jac

        heads = list(self.model.heads.parameters())
        if self.variant == "jac at the features":
            (jacobian,) = jac(each, [below], retain_graph=True)
            torch.autograd.backward(each, inputs=heads)
        else:
            found = []
            for loss, head in zip(each, self.model.heads, strict=True):
                params = list(head.parameters())
                one, *grads = torch.autograd.grad(loss, [below, *params])
                found.append(one)
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad
            jacobian = torch.stack(found)
        flat = jacobian.flatten(1)
        return (self.weighting(flat @ flat.T) @ flat).reshape(below.shape)

    def _mtl_backward(self, each: list[Any], features: Any) -> None:
        from torchjd.autojac import jac_to_grad, mtl_backward

        one_by_one = self.variant.endswith("one by one")
        trunk = list(self.model.trunk.parameters())
        mtl_backward(
            each,
            features=features,
            tasks_params=[list(head.parameters()) for head in self.model.heads],
            shared_params=trunk,
            parallel_chunk_size=1 if one_by_one else None,
        )
        jac_to_grad(trunk, self.aggregator, optimize_gramian_computation=one_by_one)

    def program_memory(self) -> dict[str, int]:
        return {}


def set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
