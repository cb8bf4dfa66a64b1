"""Which steps are compared, and what they should reach."""

from typing import NamedTuple

from problems import Size


class Case(NamedTuple):
    """One model, one K and one method, in both frameworks."""

    part: str
    model: str
    size: Size
    num_terms: int
    method: str
    goal: float | None = None  # time, ours over theirs
    goal_of_adam: float | None = None  # time, ours over our own Adam
    baseline: bool = False  # also each framework's own Adam on the sum of the losses
    keep_all: bool = False  # time every variant to the end, not only the fastest
    extras: tuple[str, ...] = ()  # variants of theirs outside the comparison

    @property
    def name(self) -> str:
        size = f"{self.size.width}x{self.size.depth}" if self.size.width else "mnist"
        return f"{self.part}/{self.model}-{size}/{self.method}/K={self.num_terms}"


PARTS = {
    "a": "MLP, 10M parameters",
    "b": "Transformer, 0.8M parameters",
    "c": "Conv net, 1.2M parameters",
    "d": "Growth with K and with P",
}
METHODS = {"mtadam": "MTAdam", "mgda": "MGDA", "pcgrad": "PCGrad", "upgrad": "UPGrad"}
GOALS = {"mtadam": 0.5, "mgda": 0.7}

MLP = Size(batch=32, width=640, depth=25)
TRANSFORMER = Size(batch=16, width=128, depth=4, length=32, heads=4)
CONV = Size(batch=64, pixels=28)
GROWTH_K = (2, 4, 8, 16, 32, 64)
GROWTH_WIDTHS = (64, 256, 640, 1280)  # 0.07M to 27M parameters


def all_cases() -> list[Case]:
    """The full run, in the order of what is to be known first."""
    compared = [
        Case(
            part,
            model,
            size,
            num_terms,
            method,
            goal=GOALS.get(method),
            baseline=num_terms == 10 and method == "mtadam",
            extras=("one first moment",) * (num_terms == 10 and method == "mtadam"),
        )
        for part, model, size in (
            ("a", "mlp", MLP),
            ("b", "transformer", TRANSFORMER),
        )
        for num_terms in (2, 10, 64)
        for method in METHODS
    ]
    conv = Case(
        "c", "conv", CONV, 10, "mtadam", goal_of_adam=3.8, baseline=True, keep_all=True
    )
    growth = [
        Case("d", "mlp", size, num_terms, method)
        for method in ("mtadam", "mgda")
        for size, num_terms in (
            *((Size(32, 256, 16), num_terms) for num_terms in GROWTH_K),
            *((Size(32, width, 16), 10) for width in GROWTH_WIDTHS),
        )
    ]
    first = [case for case in compared if case.method in GOALS]
    rest = [case for case in compared if case.method not in GOALS]
    return [*first, conv, *growth, *rest]


def short_cases() -> list[Case]:
    """The same code on models so small that it says nothing about speed: no goals."""
    mlp, transformer = Size(8, 32, 3), Size(4, 16, 1, length=8, heads=4)
    return [
        Case("a", "mlp", mlp, 3, "mtadam", baseline=True),
        Case("b", "transformer", transformer, 3, "mgda"),
        Case(
            "c",
            "conv",
            Size(20, pixels=12),
            10,
            "mtadam",
            baseline=True,
            keep_all=True,
        ),
        Case("d", "mlp", mlp, 2, "mgda"),
    ]
