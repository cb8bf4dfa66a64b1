"""GradDrop: keeps gradients of one sign, drawn at random, in each element."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Leaf, TermLeaf


class GradDropState(NamedTuple):
    """State of :func:`grad_drop`.

    Attributes:
      key: Data of the next step's random key, uint32.
    """

    key: jax.Array


def grad_drop(
    key: jax.Array,
    *,
    leak: Any = 0.0,
    purity_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sums, in each element, the gradients of one sign, which is drawn at random.

    With the positive sign purity P of an element and one uniform draw :math:`U`,

    .. math::

      P &= \frac12 \Bigl(1 + \frac{\sum_i g_i}{\sum_i \lvert g_i \rvert}\Bigr), \\[1ex]
      M_i &= \begin{cases} [g_i > 0] & f(P) > U \\ [g_i < 0] & \text{otherwise}
      \end{cases}, \\[1ex]
      u &= \sum_i \bigl(\ell_i + (1 - \ell_i) M_i\bigr) g_i .

    Args:
      key: A random key, typed (``jax.random.key``) or raw (``jax.random.PRNGKey``).
      leak: :math:`\ell`, the share of each term that passes whatever the draw is, in
        [0, 1]: a number, an array [K], or a pytree like the losses.
      purity_fn: :math:`f`, an increasing function from [0, 1] to itself; by default
        the identity.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates [\*p] of the
      same dtypes. The state is the key. ``update`` takes the extra argument
      ``present``, K booleans: absent terms take no part, and the draws do not depend on
      it.

    Raises:
      TypeError: ``key`` is not one random key.
      ValueError: ``leak`` is out of range or does not hold K values, or an update
        lacks the leading term axis.

    Source:
      Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient
      Sign Dropout", NeurIPS 2020, Eq. 1 and 2, Alg. 1, where it acts on activations.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from multiterm_optax import grad_drop
      >>> tx = grad_drop(jax.random.key(0))
      >>> grads = jnp.array([[1.0, 2.0, 3.0], [2.0, 5.0, -1.0]])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(3)))
      >>> updates.tolist()  # the last one is 3 or -1, at odds of 3 to 1
      [3.0, 7.0, 3.0]
    """
    name = "grad_drop"
    data, impl = _checks.prng_key(key, "key", name)
    _checks.in_range(leak, "leak", name, low=0.0, high=1.0, array=True)

    def leaks(num_terms: int) -> jax.Array:
        dtype = jnp.result_type(float)
        return _checks.number_or_vector(leak, "leak", name, num_terms, dtype)

    def init_fn(params: optax.Params) -> GradDropState:
        del params
        return GradDropState(key=jnp.array(data))

    def one_leaf(update: TermLeaf, shares: jax.Array, draw: jax.Array) -> Leaf:
        wide = update.astype(_terms.accumulator_dtype(update))
        size = _terms.sum_terms(jnp.abs(wide))
        positive = _terms.sum_terms(jnp.maximum(wide, 0))
        # Equals P in the docstring, and is exactly 1 where no term is negative.
        purity = jnp.where(size > 0, positive / jnp.where(size > 0, size, 1), 0.5)
        if purity_fn is not None:
            purity = purity_fn(purity)
        uniform = jax.random.uniform(draw, purity.shape, purity.dtype)
        masked = _terms.scale(1 - shares, wide)
        kept = jnp.where(
            purity > uniform,
            _terms.sum_terms(jnp.maximum(masked, 0)),
            _terms.sum_terms(jnp.minimum(masked, 0)),
        )
        return (_terms.sum_terms(_terms.scale(shares, wide)) + kept).astype(
            update.dtype
        )

    def update_fn(
        step: Step, state: GradDropState
    ) -> tuple[optax.Updates, GradDropState]:
        later, draw = jax.random.split(jax.random.wrap_key_data(state.key, impl=impl))
        leaves, structure = jax.tree.flatten(step.updates)
        picked = [
            one_leaf(leaf, leaks(len(leaf)), jax.random.fold_in(draw, i))
            for i, leaf in enumerate(leaves)
        ]
        return structure.unflatten(picked), GradDropState(jax.random.key_data(later))

    return _stages.stage(name, None, init_fn, update_fn)
