"""The layers of the package, checked from its imports."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

import multiterm_optax

ROOT = Path(multiterm_optax.__file__).parent
PACKAGE = ROOT.name
MODULES = sorted(ROOT.rglob("*.py"))

# A module imports from lower floors only.
FLOORS = {
    "_typing": 0.0,
    "_version": 0.0,
    "_words": 0.0,
    "_named": 0.1,
    "_checks": 0.25,
    "_shardings": 0.25,
    "_averages": 0.25,
    "_linear": 0.25,
    "_groups": 0.5,
    "_faces": 0.4,
    "_nnqp": 0.5,
    "_bracketing": 0.5,
    "_terms": 0.5,
    "_products": 0.6,
    "_stages": 0.7,
    "_weighting": 0.75,
    "_lifting": 0.8,
    "_reweighting": 0.8,
    "gradients": 1,
    "weightings": 1,
    "transforms": 2,
    "aggregators": 2,
    "metrics": 2,
    "wrappers": 3,
    "optimizers": 4,
    "plotting": 5,
}
RUNTIME = {"jax", "optax", "numpy", "jaxtyping"}
# Optional: imported by one module, inside its functions.
OPTIONAL = {"plotting": {"matplotlib"}}


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return tuple(part for part in parts if part != "__init__")


def is_init(path):
    return path.name == "__init__.py"


@cache
def parsed(path):
    return ast.parse(path.read_text("utf-8"))


def imports(tree):
    """Dotted names of modules imported anywhere in a module, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = tuple(node.module.split("."))
            for alias in node.names:
                full = (*base, alias.name)
                yield full if module_exists(full) else base


def module_exists(name):
    path = ROOT.joinpath(*name[1:])
    is_module = path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
    return name[0] == PACKAGE and len(name) > 1 and is_module


@cache
def exports_of(stage):
    """Private modules from which a stage's __init__ takes public names."""
    init = parsed(ROOT / stage / "__init__.py")
    return {name[-1] for name in imports(init) if len(name) == 3}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_has_a_floor(path):
    name = dotted(path)
    assert not name or name[0] in FLOORS, f"give {name[0]} a floor"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_come_from_lower_floors(path):
    name = dotted(path)
    inner = [i[1:] for i in imports(parsed(path)) if i[0] == PACKAGE]
    if not name:
        return  # the public API may take a name from any floor
    for other in inner:
        assert other, f"{'.'.join(name)} imports the whole package"
        if is_init(path) and other[0] == name[0]:
            continue
        if other[0] != name[0]:
            lower = FLOORS[other[0]] < FLOORS[name[0]]
            assert lower, f"{'.'.join(name)} imports {'.'.join(other)}"
            assert len(other) == 1, f"take {other[-1]} from the stage {other[0]}"
        else:
            # Of its own stage a module may use a helper that exports nothing.
            private = len(other) == 2 and other[-1] not in exports_of(name[0])
            assert private, f"{'.'.join(name)} imports its sibling {'.'.join(other)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_are_the_declared_ones(path):
    name = dotted(path)
    allowed = RUNTIME | {PACKAGE} | set(sys.stdlib_module_names)
    if name:
        allowed |= OPTIONAL.get(name[0], set())
    for imported in imports(parsed(path)):
        assert imported[0] in allowed, f"{path.name} imports {'.'.join(imported)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_does_nothing_but_define(path):
    # An array made at import would fix the backend before a user can choose it.
    for node in parsed(path).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"line {node.lineno}"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for part in ast.walk(node):
                if isinstance(part, ast.Call):
                    called = ast.unparse(part.func).split(".")[0]
                    assert called not in {"jax", "jnp", "optax"}, f"line {node.lineno}"
        else:
            kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.If)
            assert isinstance(node, kinds), f"line {node.lineno}"


def test_the_check_sees_what_it_forbids():
    tree = ast.parse("from multiterm_optax import _terms\nimport optax.contrib\n")
    assert list(imports(tree)) == [(PACKAGE, "_terms"), ("optax", "contrib")]
    assert "_term_grads" in exports_of("gradients")
    assert "_outputs" not in exports_of("gradients")
    assert len({dotted(path) for path in MODULES}) == len(MODULES)
