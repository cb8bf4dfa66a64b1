"""Networks on scikit-learn's digits, 8 x 8 pixels in [0, 1], with unlike terms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from held_out_data import split
from problem import Problem, borrowed, dense, dense_init, rows

PIXELS, CLASSES = 64, 10
# The middle of the image, which is to be filled in.
HOLE = np.pad(np.ones((4, 4), bool), 2).ravel()
LATENT = 8


def load(short):
    """Images [N, 64] and labels [N]; few of them in a short run."""
    images, labels, *_ = borrowed("digits").load_images()
    chosen = slice(200 if short else None)
    return images.reshape(-1, PIXELS)[chosen], labels[chosen]


def halves(seed, sizes, more_sizes):
    """Two networks from one seed, which may be traced."""
    return dense_init(seed, sizes), dense_init(seed + 1000, more_sizes)


def autoencoder(short: bool) -> Problem:
    """One code of two numbers to tell the digits apart and to draw them again.

    Terms: cross-entropy of the class, and squared error summed over the pixels. The
    score is the mean of the error rate and of 1 - R^2 of the pixels.
    """
    images, labels = load(short)
    code = 2

    def init_params(seed):
        encoder, decoder = halves(seed, (PIXELS, 64, code), (code, 64, PIXELS))
        return {
            "encoder": encoder,
            "decoder": decoder,
            "classifier": dense_init(seed + 2000, (code, 32, CLASSES)),
        }

    def predict(params, x):
        found = dense(params["encoder"], x)
        return dense(params["classifier"], found), dense(params["decoder"], found)

    def losses_fn(params, batch):
        x, y = batch
        logits, drawn = predict(params, x)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.stack([errors.mean(), ((drawn - x) ** 2).sum(axis=1).mean()])

    def score(params, part):
        x, y = part
        logits, drawn = predict(params, x)
        wrong = jnp.mean(logits.argmax(axis=-1) != y)
        unexplained = jnp.mean((drawn - x) ** 2) / x.var(axis=0).mean()
        return (wrong + unexplained) / 2

    return Problem(
        name="Autoencoder",
        measure="mean of error rate and 1 − R²",
        num_terms=2,
        steps=20 if short else 3000,
        make_data=lambda seed: split(np.random.default_rng(seed), images, labels),
        init_params=init_params,
        draw=rows(64),
        losses_fn=losses_fn,
        score=score,
    )


def frechet(one, two):
    """Distance of the normal distributions with the samples' moments [N, features]."""

    def moments(x):
        centred = x - x.mean(axis=0)
        return x.mean(axis=0), centred.T @ centred / len(x)

    (mean, spread), (other_mean, other_spread) = moments(one), moments(two)
    values, vectors = jnp.linalg.eigh(spread)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
    both = jnp.linalg.eigvalsh(root @ other_spread @ root)
    cross = jnp.sqrt(jnp.maximum(both, 0)).sum()
    traces = jnp.trace(spread) + jnp.trace(other_spread)
    return jnp.sum((mean - other_mean) ** 2) + traces - 2 * cross


def inpainting(short: bool) -> Problem:
    """A generator fills the middle 4 x 4 pixels, against a discriminator.

    Terms: adversarial, features of the discriminator, L1 reconstruction, and the
    discriminator's own loss. All train at once; no player's loss reaches the other's
    parameters. The score is the mean of the L1 error and of the Frechet distance of the
    filled pixels, each over that of the mean image.
    """
    images, _ = load(short)
    seen = PIXELS - HOLE.sum()

    def init_params(seed):
        generator, discriminator = halves(
            seed, (seen, 64, 64, HOLE.sum()), (PIXELS, 32, 1)
        )
        return {"generator": generator, "discriminator": discriminator}

    def fill(params, x):
        drawn = jax.nn.sigmoid(dense(params["generator"], x[:, ~HOLE]))
        return drawn, jnp.asarray(x).at[:, HOLE].set(drawn)

    def judge(discriminator, x):
        """Logit of being real, and the features from which it comes."""
        features = jax.nn.relu(dense(discriminator[:-1], x))
        return dense(discriminator[-1:], features)[:, 0], features

    def losses_fn(params, batch):
        (x,) = batch
        drawn, filled = fill(params, x)
        fixed = jax.lax.stop_gradient(params["discriminator"])
        logit, features = judge(fixed, filled)
        _, wanted = judge(fixed, x)
        real, _ = judge(params["discriminator"], x)
        fake, _ = judge(params["discriminator"], jax.lax.stop_gradient(filled))
        return jnp.stack(
            [
                jax.nn.softplus(-logit).mean(),
                jnp.mean((features - wanted) ** 2),
                jnp.abs(drawn - x[:, HOLE]).mean(),
                jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean(),
            ]
        )

    def score(params, part):
        (x,) = part
        drawn, _ = fill(params, x)
        true = x[:, HOLE]
        mean = jnp.broadcast_to(true.mean(axis=0), true.shape)
        error = jnp.abs(drawn - true).mean() / jnp.abs(mean - true).mean()
        return (error + frechet(drawn, true) / frechet(mean, true)) / 2

    return Problem(
        name="Inpainting",
        measure="mean of relative L1 and Fréchet",
        num_terms=4,
        steps=20 if short else 3000,
        make_data=lambda seed: split(np.random.default_rng(seed), images),
        init_params=init_params,
        draw=rows(64),
        losses_fn=losses_fn,
        score=score,
    )


def vae(short: bool) -> Problem:
    """A variational autoencoder, whose two terms are one objective by construction.

    Terms: negative log-likelihood of the pixels, as of grey Bernoulli variables, and
    the divergence from the prior. The score is their sum, the negative bound on the
    likelihood: other weights than 1 and 1 optimise something else. A balancing method
    has nothing to win here, and no verdict counts this problem.
    """
    images, _ = load(short)
    draw_rows = rows(64)

    def make_data(seed):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(len(images), LATENT)).astype(np.float32)
        return split(rng, images, noise)

    def init_params(seed):
        encoder, decoder = halves(seed, (PIXELS, 64, 2 * LATENT), (LATENT, 64, PIXELS))
        return {"encoder": encoder, "decoder": decoder}

    def draw(key, train):
        one, two = jax.random.split(key)
        x, noise = draw_rows(one, train)
        return x, jax.random.normal(two, noise.shape)

    def losses_fn(params, batch):
        x, noise = batch
        mean, log_spread = jnp.split(dense(params["encoder"], x), 2, axis=1)
        logits = dense(params["decoder"], mean + jnp.exp(log_spread) * noise)
        errors = optax.sigmoid_binary_cross_entropy(logits, x).sum(axis=1)
        square = mean**2 + jnp.exp(2 * log_spread)
        divergence = (square - 1 - 2 * log_spread).sum(axis=1) / 2
        return jnp.stack([errors.mean(), divergence.mean()])

    return Problem(
        name="VAE",
        measure="negative ELBO",
        num_terms=2,
        steps=20 if short else 3000,
        make_data=make_data,
        init_params=init_params,
        draw=draw,
        losses_fn=losses_fn,
        score=lambda params, part: losses_fn(params, part).sum(),
    )
