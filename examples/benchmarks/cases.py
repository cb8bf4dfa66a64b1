"""Which steps are compared, and what they should reach."""

from typing import NamedTuple

from problems import Size


class Case(NamedTuple):
    """One model, one number of terms and one method, in both frameworks.

    ``terms`` says what the terms are: the ``"outputs"`` of the model (the classes, for
    the conv net), or the ``"rows"`` of the batch. For heads on a trunk it says where
    the gradients are taken that decide on the weights: at the ``"features"``, or at
    the parameters of the ``"trunk"``.
    """

    part: str
    model: str
    size: Size
    num_terms: int
    method: str
    terms: str = "outputs"
    goal: float | None = None  # time, ours over theirs
    goal_of_adam: float | None = None  # time, ours over our own Adam
    baseline: bool = False  # also each framework's own Adam on the sum of the losses
    keep_all: bool = False  # time every variant to the end, not only the fastest
    extras: tuple[str, ...] = ()  # variants of theirs outside the comparison

    @property
    def network(self) -> str:
        """The model, as a reader is told."""
        return described(self.model, self.size)

    @property
    def name(self) -> str:
        letter = "B" if self.terms == "rows" else "K"
        number = f"{letter} = {self.num_terms}"
        words = (self.network, PLACES.get(self.terms), METHODS[self.method], number)
        return ", ".join(word for word in words if word)


PARTS = {
    "a": "MLP, 10M parameters",
    "b": "Transformer, 0.8M parameters",
    "c": "Conv net, 1.2M parameters",
    "d": "Growth with K and with P",
    "e": "Every row a term",
    "f": "Heads on a shared trunk",
}
METHODS = {"mtadam": "MTAdam", "mgda": "MGDA", "pcgrad": "PCGrad", "upgrad": "UPGrad"}
PLACES = {
    "rows": "every row a term",
    "features": "weights from the features",
    "trunk": "weights from the trunk",
}
OUTPUTS = 10  # of a model whose terms are the rows

MLP = Size(batch=32, width=640, depth=25)
TRANSFORMER = Size(batch=16, width=128, depth=4, length=32, heads=4)
CONV = Size(batch=64, pixels=28)
ROWS = {
    "mlp": Size(batch=0, width=512, depth=8),
    "transformer": TRANSFORMER,
    "conv": CONV,
}
TRUNK = Size(batch=32, width=256, depth=16)
GROWTH_K = (2, 4, 8, 16, 32, 64)
GROWTH_WIDTHS = (64, 256, 640, 1280)  # 0.07M to 27M parameters

ROWS_GOAL, FEATURES_GOAL = 0.1, 0.7


def described(model: str, size: Size) -> str:
    shape = f"{size.depth} x {size.width}"
    return {
        "mlp": f"MLP of {shape}",
        "transformer": f"transformer of {shape}",
        "heads": f"heads on an MLP of {shape}",
        "conv": "conv net",
    }[model]


def goal(model: str, method: str, num_terms: int) -> float | None:
    """Time of a step, ours over theirs, at most."""
    if num_terms == 2:
        return None
    return 0.4 if model == "mlp" and method != "mtadam" else 0.8


def all_cases() -> list[Case]:
    """The full run, in the order of what is to be known first."""
    compared = [
        Case(
            part,
            model,
            size,
            num_terms,
            method,
            goal=goal(model, method, num_terms),
            baseline=num_terms == 10 and method == "mtadam",
            extras=("one first moment",) * (num_terms == 10 and method == "mtadam"),
        )
        for num_terms in (10, 64, 2)
        for part, model, size in (
            ("a", "mlp", MLP),
            ("b", "transformer", TRANSFORMER),
        )
        for method in METHODS
    ]
    conv = Case(
        "c", "conv", CONV, 10, "mtadam", goal_of_adam=3.8, baseline=True, keep_all=True
    )
    rows = [
        Case("e", model, size._replace(batch=b), b, method, "rows", goal=ROWS_GOAL)
        for b in (32, 64, 256)
        for model, size in ROWS.items()
        for method in ("upgrad", "mgda")
    ]
    heads = [
        Case(
            "f",
            "heads",
            TRUNK,
            num_terms,
            method,
            terms,
            goal=FEATURES_GOAL,
            # Other weights, from K passes through the trunk; its time is asked for.
            extras=("mtl_backward",) * (terms == "features"),
        )
        for num_terms in (10, 64)
        for method in ("mgda", "upgrad")
        for terms in ("features", "trunk")
    ]
    growth = [
        Case("d", "mlp", size, num_terms, method)
        for method in ("mtadam", "mgda")
        for size, num_terms in (
            *((Size(32, 256, 16), num_terms) for num_terms in GROWTH_K),
            *((Size(32, width, 16), 10) for width in GROWTH_WIDTHS),
        )
    ]
    return [*rows, *heads, *compared, conv, *growth]


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
        Case("e", "transformer", transformer, 4, "upgrad", "rows"),
        Case("f", "heads", mlp, 3, "mgda", "features", extras=("mtl_backward",)),
        Case("f", "heads", mlp, 3, "mgda", "trunk"),
    ]
