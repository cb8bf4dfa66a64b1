"""MoCo: min-norm weights from tracked gradients, one step of descent at a time.

It is the composition of ``per_term`` with the tracking and of ``reweight`` with a
weighting that descends on the simplex.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _lifting, _reweighting, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.transforms import _simplex, _tracking


class MoCoState(NamedTuple):
    """State of the weighting in :func:`moco`.

    Attributes:
      shares: K times the weights, [K], if all terms are present; otherwise in
        proportion.
      count: Number of steps taken, int32.
    """

    shares: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def moco(
    num_terms: int,
    beta: optax.ScalarOrSchedule = 0.5,
    gamma: optax.ScalarOrSchedule = 0.1,
    *,
    rho: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""MoCo: tracks each gradient, and the min-norm weights of the tracked gradients.

    .. math::

      y_i &\leftarrow y_i - \beta_t \, (y_i - g_i), \\
      \lambda &\leftarrow \Pi_\Delta \bigl( \lambda -
        \gamma_t \, (Y Y^\top + \rho I) \, \lambda \bigr), \\
      g_i &\leftarrow \lambda_i y_i ,

    with :math:`y_i = 0` and :math:`\lambda_i = 1/K` before the first step and the
    projection :math:`\Pi_\Delta` on the simplex.

    Args:
      num_terms: K, the number of terms.
      beta: :math:`\beta_t`, a number that is not negative or an Optax schedule, which
        counts the steps of each term from 0.
      gamma: :math:`\gamma_t`, the same for the weights: about one over squared norms.
      rho: :math:`\rho`, not negative: draws the weights towards equal ones.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates of the same
      shapes and dtypes. State: K copies of the parameters. ``update`` takes the extra
      argument ``present``, K booleans: an absent term keeps its :math:`y_i` and share.

    Raises:
      ValueError: A hyperparameter is out of range, or an update has no term axis.

    Source:
      Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably
      Convergent Approach", ICLR 2023, Alg. 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import moco
      >>> tx = moco(num_terms=2)
      >>> grads = jnp.array([[2.0, 0.0], [0.0, 4.0]])
      >>> updates, state = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [[round(float(x), 3) for x in row] for row in updates]
      [[0.575, 0.0], [0.0, 0.85]]
    """
    name = "moco"
    num_terms = _checks.num_terms(num_terms, name)
    _simplex.check_rate(beta, "beta", name)
    _simplex.check_rate(gamma, "gamma", name)
    _checks.non_negative(rho, "rho", name)

    track = _tracking.track(lambda count: _simplex.rate_at(beta, count))
    weighting = _descending(gamma, rho, name)
    return _tracking.in_turn(
        name,
        num_terms,
        _lifting.lift(track, num_terms, name),
        _reweighting.reweight(weighting, num_terms, "global", name),
    )


def _descending(rate: optax.ScalarOrSchedule, rho: Scalar, name: str) -> Weighting:
    """Weights that descend the squared norm of the weighted sum."""

    def init(num_terms: int) -> MoCoState:
        shares = jnp.ones((num_terms,), jnp.result_type(float))
        return MoCoState(shares, jnp.zeros([], jnp.int32))

    def find(problem: Problem, state: MoCoState) -> tuple[Weights, MoCoState]:
        weights = _simplex.weights_of(problem, state.shares)
        gramian = problem.gramian.astype(weights.dtype)
        slope = jnp.matmul(gramian, weights, precision="highest") + rho * weights
        gamma = jnp.asarray(_simplex.rate_at(rate, state.count), weights.dtype)
        weights = _simplex.descend(problem, weights, gamma, slope)
        count = jnp.asarray(optax.safe_increment(state.count))
        shares = _simplex.shares_of(problem, weights, state.shares)
        return weights, MoCoState(shares, count)

    return _weighting.method(name, init, find, reads_gramian=True, by_term=("shares",))
