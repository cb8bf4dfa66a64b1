"""SDMGrad: MGDA drawn towards the mean, with products of independent batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _shardings, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Gramian, Scalar, TermLeaf, Weights
from multiterm_optax._weighting import Problem, pairs_present
from multiterm_optax.transforms import _batches, _simplex


class SDMGradState(NamedTuple):
    """State of :func:`sdmgrad`.

    Attributes:
      shares: K times the last :math:`w`, [K], if all terms are present; otherwise in
        proportion.
      weights: The weights of the last step, [K]; ones before the first.
    """

    shares: jax.Array
    weights: jax.Array


def sdmgrad(
    num_terms: int,
    lam: Scalar = 0.3,
    *,
    steps: int = 20,
    rate: Scalar = 10.0,
    momentum: Scalar = 0.5,
) -> optax.GradientTransformationExtraArgs:
    r"""SDMGrad: min-norm weights drawn towards equal ones, from independent batches.

    With the gradients :math:`J_1, J_2, J_3` of three batches,
    :math:`A = J_1 J_2^\top / (\operatorname{mean}_i A_{ii}^{1/2})^2`, :math:`v = 0` and
    the :math:`w` of the last step (at first :math:`1/K`), each of ``steps`` rounds does

    .. math::

      v \leftarrow \mu v + A \Bigl(w + \frac{\lambda}{K} 1\Bigr), \qquad
      w \leftarrow \Pi_\Delta (w - \alpha v), \qquad
      g_i \leftarrow \frac{w_i + \lambda / K}{1 + \lambda} \, (J_3)_i .

    Args:
      num_terms: K, the number of terms.
      lam: :math:`\lambda`, not negative. 0: MGDA; large: the mean.
      steps: Number of rounds, a static int.
      rate: :math:`\alpha`, not negative.
      momentum: :math:`\mu`, in [0, 1).

    Returns:
      A transformation of updates whose every leaf is [K, \*p], :math:`J_1`, to updates
      of the same shapes and dtypes. ``update`` takes the extra arguments ``grads_2``,
      ``grads_3`` and ``present`` as :func:`multiterm_optax.modo` does.

    Raises:
      TypeError: ``steps`` is not a static int.
      ValueError: A hyperparameter, the updates or the extra gradients are not as above.

    Source:
      Xiao, Ban and Ji, "Direction-oriented Multi-objective Learning", NeurIPS 2023, and
      the authors' code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import sdmgrad
      >>> tx = sdmgrad(num_terms=2, lam=0.0, rate=0.1, steps=200)
      >>> updates, _ = tx.update(jnp.diag(jnp.array([1.0, 2.0])), tx.init(jnp.zeros(2)))
      >>> [[round(float(x), 3) for x in row] for row in updates]
      [[0.8, 0.0], [0.0, 0.4]]
    """
    name = "sdmgrad"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.non_negative(lam, "lam", name)
    steps = _checks.static_int(steps, "steps", name, low=1)
    _checks.non_negative(rate, "rate", name)
    _checks.decay(momentum, "momentum", name)

    def init_fn(params: optax.Params) -> SDMGradState:
        del params
        ones = jnp.ones((num_terms,), jnp.result_type(float))
        return SDMGradState(ones, jnp.array(ones))

    def descend(problem: Problem, start: Weights, products: Gramian) -> Weights:
        lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0))
        scale = problem.mean(lengths)
        known = jnp.where(scale > 0, scale, 1)
        scaled = jnp.where(scale > 0, products / known / known, 0)
        drawn = lam * problem.equal_shares(start.dtype)

        def one_round(
            _: Any, carry: tuple[Weights, Weights]
        ) -> tuple[Weights, Weights]:
            weights, velocity = carry
            slope = jnp.matmul(scaled, weights + drawn, precision="highest")
            velocity = (momentum * velocity + slope).astype(velocity.dtype)
            moved = _simplex.descend(problem, weights, rate, velocity)
            return moved.astype(weights.dtype), velocity

        carry = start, jnp.zeros_like(start)
        return jax.lax.fori_loop(0, steps, one_round, carry)[0]

    def update_fn(
        step: Step, state: SDMGradState
    ) -> tuple[optax.Updates, SDMGradState]:
        problem = Problem(num_terms, step.present)
        second = _batches.grads_of(step, "grads_2", name)
        third = _batches.grads_of(step, "grads_3", name)
        second = step.updates if second is None else second
        third = step.updates if third is None else third

        def products(first: TermLeaf, other: TermLeaf) -> Gramian:
            first, other = map(_shardings.on_one_device, (first, other))
            return jax.vmap(lambda row: _terms.dots(first, row), out_axes=1)(other)

        parts = jax.tree.leaves(jax.tree.map(products, step.updates, second))
        zeros = jnp.zeros((num_terms, num_terms), state.shares.dtype)
        total = jax.lax.stop_gradient(sum(parts, start=zeros)).astype(zeros.dtype)
        start = _simplex.weights_of(problem, state.shares)
        found = descend(problem, start, pairs_present(step.present, total))
        weights = (found + lam * problem.equal_shares(found.dtype)) / (1 + lam)
        updates = jax.tree.map(
            lambda g, like: _terms.scale(weights, g).astype(like.dtype),
            third,
            step.updates,
        )
        shares = _simplex.shares_of(problem, found, state.shares)
        return updates, SDMGradState(shares, weights.astype(shares.dtype))

    return _stages.stage(name, num_terms, init_fn, update_fn)
