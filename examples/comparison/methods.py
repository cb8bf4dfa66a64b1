"""Every method of the library, as one way to train: ``method(losses_fn, setting)``.

A method returns ``init(params) -> state`` and ``step(params, state, batch) -> (params,
state)``. The library's defaults hold throughout, and Adam follows wherever a method
takes an inner optimizer. Weightings find their weights first and run one backward pass
with them (``value_and_weighted_grad``); the others take per-term gradients.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import multiterm_optax as mt

EPOCHS = 20  # a run has so many, for the methods that count in epochs
# The paper's own form, which was the default when the published runs were made.
SOFTADAPT: dict[str, Any] = {"beta": 0.1, "normalized": False, "eps": 1e-8}
EPS = 1e-3  # what inexact_mgda trusts a gradient to; it has no default


class Setting(NamedTuple):
    rate: Any  # may be traced
    num_terms: int
    steps: int
    key: jax.Array
    weights: Any  # [K], for static weights

    @property
    def epoch(self) -> int:
        return max(self.steps // EPOCHS, 1)


Method = Callable[[Callable[..., jax.Array], Setting], tuple[Callable, Callable]]


def per_term(make: Callable[[Setting], Any]) -> Method:
    """Of an optimizer that takes per-term gradients."""

    def method(losses_fn, setting):
        tx = make(setting)
        value_and_grads = mt.value_and_term_grads(losses_fn)

        def step(params, state, batch):
            losses, grads = value_and_grads(params, batch)
            updates, state = tx.update(grads, state, params, losses=losses)
            return optax.apply_updates(params, updates), state

        return tx.init, step

    return method


def weights_first(make: Callable[[Setting], mt.Weighting]) -> Method:
    """Of a weighting, with Adam behind it."""

    def method(losses_fn, setting):
        tx = optax.adam(setting.rate)
        weighted_grad = mt.value_and_weighted_grad(losses_fn, make(setting))

        def init(params):
            return weighted_grad.init(setting.num_terms), tx.init(params)

        def step(params, state, batch):
            weighting, inner = state
            _, grads, weighting = weighted_grad.update(weighting, params, batch)
            updates, inner = tx.update(grads, inner, params)
            return optax.apply_updates(params, updates), (weighting, inner)

        return init, step

    return method


def kept(make: Callable[[Setting], Any]) -> Method:
    """Of a stage that keeps the terms: their sum, and Adam behind it."""

    def chain(s):
        return mt.chain(make(s), mt.sum_terms(), optax.adam(s.rate))

    return per_term(chain)


def one_term(make: Callable[[Setting], mt.Weighting]) -> Method:
    """Of a weighting of momenta, where a step differentiates one term only.

    Adam behind it has no momentum of its own.
    """

    def method(losses_fn, setting):
        tx = mt.chain(
            mt.one_at_a_time(make(setting), setting.num_terms),
            optax.adam(setting.rate, b1=0.0),
        )
        value_and_grad = mt.value_and_one_grad(losses_fn)

        def init(params):
            return jnp.zeros([], jnp.int32), tx.init(params)

        def step(params, state, batch):
            count, inner = state
            losses, grads, present = value_and_grad(count, params, batch)
            updates, inner = tx.update(
                grads, inner, params, losses=losses, present=present
            )
            return optax.apply_updates(params, updates), (count + 1, inner)

        return init, step

    return method


def before_adatask(make: Callable[[Setting], mt.Weighting]) -> Method:
    """A weighting as K -> K, then an Adam for each term."""

    def chain(s):
        adatask = mt.adatask(optax.adam(s.rate), s.num_terms)
        return mt.chain(mt.reweight(make(s), s.num_terms), adatask)

    return per_term(chain)


def before_adam(make: Callable[[Setting], Any]) -> Method:
    """A K -> K stage, then Adam on the sum."""
    return per_term(
        lambda s: mt.chain(make(s), mt.sum_terms(), optax.adam(s.rate)),
    )


def ntk_of_losses(losses_fn, setting):
    """The problems have losses and no residuals: each loss is one row."""
    tx = mt.weighted(mt.ntk(), optax.adam(setting.rate), setting.num_terms)
    value_and_grads = mt.value_and_term_grads(losses_fn)

    def step(params, state, batch):
        _, grads = value_and_grads(params, batch)
        traces = jnp.square(mt.metrics.norms(grads))
        updates, state = tx.update(grads, state, params, traces=traces)
        return optax.apply_updates(params, updates), state

    return tx.init, step


def scaled_by_norm(s: Setting) -> optax.GradientTransformationExtraArgs:
    """Norms of the whole gradients, averaged as slowly as `by_loss` averages losses."""
    return mt.balance_by_norm(s.num_terms, 0.999, groups="global")


def shared_rms(s: Setting) -> optax.GradientTransformationExtraArgs:
    """All terms over the root of one second moment, that of their sum.

    Conflicts are then those of Adam's geometry, in which the steps are taken.
    """
    moment = optax.ema(0.999)

    def init(params):
        return moment.init(params)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        squares = jax.tree.map(lambda g: jnp.square(g.sum(axis=0)), updates)
        mean, state = moment.update(squares, state)
        scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + 1e-30), updates, mean)
        return scaled, state

    return optax.GradientTransformationExtraArgs(init, update)


def shared_rms_upgrad(s: Setting) -> optax.GradientTransformationExtraArgs:
    """Adam, but that conflicts are resolved between its two halves."""
    return mt.chain(
        scaled_by_norm(s),
        shared_rms(s),
        mt.reweight(mt.upgrad(), s.num_terms),
        mt.sum_terms(),
        optax.ema(0.9),
        optax.scale_by_learning_rate(s.rate),
    )


def frozen_balanced(s: Setting) -> optax.GradientTransformationExtraArgs:
    """`balanced` whose weights stay as they are after a tenth of the run."""
    norms = mt.by_norm(0.999, anchor="mean", eps=0.0)
    weighting = mt.frozen(norms, max(s.steps // 10, 1))
    return mt.weighted(weighting, optax.adam(s.rate), s.num_terms)


# Adam on the sum under weights that stay as they are: what all others are held against.
STATIC = weights_first(lambda s: mt.constant(s.weights))

METHODS: dict[str, Method] = {
    "equal weights": weights_first(lambda s: mt.equal()),
    "mtadam": per_term(lambda s: mt.mtadam(s.rate, s.num_terms)),
    "mtadam, one group": per_term(
        lambda s: mt.mtadam(s.rate, s.num_terms, groups="global")
    ),
    "mtadam, not balanced": per_term(
        lambda s: mt.chain(
            mt.scale_by_max_adam(s.num_terms), optax.scale_by_learning_rate(s.rate)
        )
    ),
    "balance_by_norm": per_term(
        lambda s: mt.chain(
            mt.balance_by_norm(s.num_terms), mt.sum_terms(), optax.adam(s.rate)
        )
    ),
    "metabalance": per_term(lambda s: mt.metabalance(optax.adam(s.rate), s.num_terms)),
    "adatask_adam": per_term(lambda s: mt.adatask_adam(s.rate, s.num_terms)),
    "adatask_rmsprop": per_term(lambda s: mt.adatask_rmsprop(s.rate, s.num_terms)),
    "adatask_adagrad": per_term(lambda s: mt.adatask_adagrad(s.rate, s.num_terms)),
    "ladatask_rmsprop": per_term(lambda s: mt.ladatask_rmsprop(s.rate, s.num_terms)),
    "pcgrad, adatask": before_adatask(lambda s: mt.pcgrad(s.key)),
    "cagrad, adatask": before_adatask(lambda s: mt.cagrad()),
    "moco": kept(lambda s: mt.moco(s.num_terms)),
    "db_mtl": kept(lambda s: mt.db_mtl(s.num_terms)),
    "excess_mtl": kept(lambda s: mt.excess_mtl(s.num_terms)),
    # A step has one batch, which stands for all that these two ask for.
    "modo": kept(lambda s: mt.modo(s.num_terms)),
    "sdmgrad": kept(lambda s: mt.sdmgrad(s.num_terms)),
    "one_at_a_time, upgrad": one_term(lambda s: mt.upgrad()),
    "mgda": weights_first(lambda s: mt.mgda()),
    "mgda, l2": weights_first(lambda s: mt.mgda("l2")),
    "inexact_mgda": per_term(
        lambda s: mt.weighted(mt.inexact_mgda(EPS), optax.adam(s.rate), s.num_terms)
    ),
    "adaptive_mgda": per_term(
        lambda s: mt.adaptive_mgda(
            optax.adam(s.rate), s.num_terms, steps_per_epoch=s.epoch
        )
    ),
    "cagrad": weights_first(lambda s: mt.cagrad()),
    "upgrad": weights_first(lambda s: mt.upgrad()),
    "dual_proj": weights_first(lambda s: mt.dual_proj()),
    "pcgrad": weights_first(lambda s: mt.pcgrad(s.key)),
    "krum": weights_first(lambda s: mt.krum(num_byzantine=0)),
    "cr_mogm, mgda": weights_first(lambda s: mt.cr_mogm(mt.mgda())),
    "random_weights": weights_first(lambda s: mt.random_weights(s.key)),
    "trimmed_mean": per_term(
        lambda s: mt.chain(mt.trimmed_mean(1), optax.adam(s.rate))
    ),
    "median_terms": per_term(lambda s: mt.chain(mt.median_terms(), optax.adam(s.rate))),
    "grad_drop": per_term(lambda s: mt.chain(mt.grad_drop(s.key), optax.adam(s.rate))),
    "gradnorm": weights_first(lambda s: mt.gradnorm()),
    "uncertainty": weights_first(lambda s: mt.uncertainty()),
    "uncertainty, network's rate": weights_first(
        lambda s: mt.uncertainty(optax.adam(s.rate))
    ),
    "softadapt": weights_first(lambda s: mt.softadapt(**SOFTADAPT)),
    "softadapt, loss-weighted": weights_first(
        lambda s: mt.softadapt(loss_weighted=True, **SOFTADAPT)
    ),
    "dwa": weights_first(lambda s: mt.dwa(steps_per_epoch=s.epoch)),
    "lbtw": weights_first(lambda s: mt.lbtw()),
    "lr_annealing": before_adam(lambda s: mt.lr_annealing(s.num_terms)),
    "lr_annealing, plain mean": before_adam(
        lambda s: mt.lr_annealing(s.num_terms, statistic="mean", plain=True)
    ),
    "inverse_dirichlet": before_adam(lambda s: mt.inverse_dirichlet(s.num_terms)),
    "dual_balanced": before_adam(lambda s: mt.dual_balanced(s.num_terms)),
    "output_balance": before_adam(lambda s: mt.output_balance(s.num_terms)),
    "ntk": ntk_of_losses,
    "imtl_l": weights_first(lambda s: mt.imtl_l(optax.adam(s.rate))),
    "relobralo": weights_first(lambda s: mt.relobralo(s.key)),
    # Of losses between 0.01 and 10, as most are here.
    "soft_uncertainty": weights_first(lambda s: mt.soft_uncertainty(20.0)),
    # All losses but the first are brought below 0.1, where they begin near 1.
    "lagrangian": weights_first(
        lambda s: mt.lagrangian(jnp.full(s.num_terms - 1, 0.1), s.rate)
    ),
}


# What `balanced` was chosen from, and controls.
DEFAULTS: dict[str, Method] = {
    # In the form that holds no K gradients: the same steps at a higher price for few
    # terms, and so against static weights with more trials.
    "balanced": weights_first(lambda s: mt.by_norm(0.999, anchor="mean", eps=0.0)),
    "balanced, shared RMS, upgrad": per_term(shared_rms_upgrad),
    "by_loss, upgrad, adatask": before_adatask(
        lambda s: mt.compose(mt.by_loss(), mt.upgrad(rows=True))
    ),
    "by_loss, pcgrad, adatask": before_adatask(
        lambda s: mt.compose(mt.by_loss(), mt.pcgrad(s.key))
    ),
    "balanced, upgrad, adatask": per_term(
        lambda s: mt.chain(
            scaled_by_norm(s),
            mt.reweight(mt.upgrad(rows=True), s.num_terms),
            mt.adatask(optax.adam(s.rate), s.num_terms),
        )
    ),
    "by_loss, upgrad": weights_first(lambda s: mt.compose(mt.by_loss(), mt.upgrad())),
    "mtadam, slow norms": per_term(
        lambda s: mt.mtadam(s.rate, s.num_terms, b3=0.999, groups="global")
    ),
    "upgrad, adatask": before_adatask(lambda s: mt.upgrad(rows=True)),
    "balanced, then upgrad": per_term(
        lambda s: mt.weighted(
            mt.compose(mt.by_norm(0.999, anchor="mean", eps=0.0), mt.upgrad()),
            optax.adam(s.rate),
            s.num_terms,
        )
    ),
    "by_loss": weights_first(lambda s: mt.by_loss()),
    "balanced, frozen": per_term(frozen_balanced),
    "equal weights, muon": per_term(
        lambda s: mt.weighted(mt.equal(), optax.contrib.muon(s.rate), s.num_terms)
    ),
    "balanced, muon": per_term(
        lambda s: mt.balanced(optax.contrib.muon(s.rate), s.num_terms)
    ),
}

METHODS |= DEFAULTS


def _others() -> dict[str, Callable[[], mt.Weighting]]:
    """Every weighting that needs no arguments and has no line above."""
    found = {}
    for name, factory in vars(mt).items():
        if not inspect.isfunction(factory) or name in METHODS or name == "equal":
            continue
        signature = inspect.signature(factory)
        optional = all(
            one.default is not one.empty for one in signature.parameters.values()
        )
        if optional and signature.return_annotation is mt.Weighting:
            found[name] = factory
    return found


METHODS |= {name: weights_first(lambda s, f=f: f()) for name, f in _others().items()}
