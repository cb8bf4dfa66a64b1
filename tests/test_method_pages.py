"""A method's page works as pasted, after the obvious definitions."""

import ast

import jax
import jax.numpy as jnp
import optax
import pytest

import multiterm_optax as mt
from tests.test_docs import DOCS, python_blocks

PAGES = sorted((DOCS / "methods").glob("*.md"))
WITH_CODE = [page for page in PAGES if page.stem != "index"]

# The names of the losses or their number, where a page has others than two.
TERMS = {
    "adaptive_weight": ("reconstruction", "adversary"),
    "dual_balanced": ("bcs", "ics", "res"),
    "equal": ("res", "ics", "bcs"),
    "krum": 7,
    "lagrangian": 3,
    "lr_annealing": ("bcs", "ics", "res"),
    "metabalance": ("buy", "click"),
    "trimmed_mean": 3,
}
ROWS = 8

# What a reader does with a function that a page only defines.
CALLS = {
    "balanced": "weighted_grad.update(weighted_grad.init(K), params, batch)",
    "causal": "assert losses_fn(params, batch, batch).shape == (K,)",
    "modo": "step(params, state, batches)",
    "one_at_a_time": """
params, x = {"in": jnp.ones((3, 4)), "out": jnp.ones(4)}, batch
step(jnp.zeros([], int), params, tx.init(params), x)
""",
    "output_balance": "step(params, balance.init(decode(params, batch)), batch)",
}


# Stages that get the gradients of an output, from the page's own step.
ON_OUTPUTS = {"output_balance": ("balance",)}


def definitions(terms):
    """What a reader has before the page: losses, parameters, batches, gradients."""
    named = not isinstance(terms, int)
    num_terms = len(terms) if named else terms

    def errors(output):
        squares = jnp.mean((output - 1.0) ** 2, axis=0)
        return dict(zip(terms, squares, strict=True)) if named else squares

    def decode(params, x):
        return jnp.tanh(x @ params["encoder"]) @ params["decoder"]["last"]

    def losses_fn(params, batch):
        # output_balance differentiates the losses with respect to the output.
        return errors(decode(params, batch) if isinstance(params, dict) else params)

    params = {
        "encoder": jnp.ones((3, 4)),
        "decoder": {"last": jnp.ones((4, num_terms))},
    }
    batch = jnp.ones((ROWS, 3))
    losses, grads = mt.value_and_term_grads(losses_fn)(params, batch)
    return {
        "K": num_terms,
        "N": ROWS,
        "batch": batch,
        "batches": [batch] * 3,
        "boundary_loss": lambda params: jnp.sum(params["encoder"] ** 2),
        "decode": decode,
        "equation": lambda params, *points: decode(params, points[-1])[:, 0],
        "few_points": batch,
        "grads": grads,
        "grads_2": grads,
        "grads_3": grads,
        "jax": jax,
        "jnp": jnp,
        "losses": losses,
        "losses_after_warm_up": losses,
        "losses_fn": losses_fn,
        "mt": mt,
        "optax": optax,
        "params": params,
        "points": batch,
        "residuals_fn": lambda params, points: list(decode(params, points).T),
    }


def take_step(tx, names):
    """Traces a step of a transformation with every argument that any of them reads."""
    state = tx.init(names["params"])
    tx.update(
        names["grads"],
        state,
        names["params"],
        losses=names["losses"],
        losses_after=names["losses"],
        traces=jnp.ones(names["K"]),
        grads_2=names["grads_2"],
        grads_3=names["grads_3"],
    )
    return state


def run_page(page):
    """Runs a page's blocks, and a step of every transformation that they make.

    Within a trace nothing is compiled, so that all pages take seconds.
    """

    def traced():
        names = definitions(TERMS.get(page.stem, 2))
        given = dict(names)
        for block in python_blocks(page):
            for statement in ast.parse(block).body:
                before = dict(names)
                code = ast.Module([statement], type_ignores=[])
                exec(compile(code, page.name, "exec"), names)
                new = {k: v for k, v in names.items() if v is not before.get(k)}
                for name, made in new.items():
                    is_tx = isinstance(made, optax.GradientTransformation)
                    if is_tx and name not in ON_OUTPUTS.get(page.stem, ()):
                        state = take_step(made, given)
                        if name == "tx":
                            names["state"] = state
        exec(CALLS.get(page.stem, ""), names)

    jax.eval_shape(traced)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_blocks_run_as_pasted(page):
    assert python_blocks(page), "no code was found"
    run_page(page)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_no_function_of_a_page_is_left_uncalled(page):
    code = "\n".join(python_blocks(page))
    used = ast.walk(ast.parse(code + "\n" + CALLS.get(page.stem, "")))
    used = {node.id for node in used if isinstance(node, ast.Name)}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            assert node.name in used, f"add a call of {node.name} to CALLS"


@pytest.mark.parametrize(
    "code",
    [
        "tx = mt.balanced(optax.adam(1e-3), num_terms=K + 1)",
        "tx = mt.chain(mt.lr_annealing(num_terms=K), optax.adam(1e-3))",
        "mt.no_such_method()",
    ],
)
def test_a_wrong_block_is_noticed(code, tmp_path):
    page = tmp_path / "wrong.md"
    page.write_text(f"```python\n{code}\n```\n", "utf-8")
    with pytest.raises((AttributeError, ValueError)):
        run_page(page)
