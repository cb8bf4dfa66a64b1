"""The two networks of ``digits.py``, as functions of a list of layers."""

import jax
import jax.numpy as jnp
import numpy as np
from digits_data import K


def init_params(seed, image_shape, model):
    height, width = image_shape
    if model == "mlp":
        shapes = [(height * width, 64), (64, K)]
    else:
        flat = 64 * ((height - 4) // 2) * ((width - 4) // 2)
        shapes = [(3, 3, 1, 32), (3, 3, 32, 64), (flat, 128), (128, K)]
    params = []
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    for key, shape in zip(keys, shapes, strict=True):
        bound = 1 / np.sqrt(np.prod(shape[:-1]))
        w = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        params.append({"w": w, "b": jnp.zeros(shape[-1])})
    return params


def mlp(params, images):
    """One hidden layer of 64."""
    hidden, out = params
    x = images.reshape(len(images), -1)
    return jax.nn.relu(x @ hidden["w"] + hidden["b"]) @ out["w"] + out["b"]


def cnn(params, images):
    """The network of PyTorch's MNIST example, without its dropout."""
    x = images[..., None]
    for layer in params[:2]:
        x = jax.lax.conv_general_dilated(
            x, layer["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["b"])
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    return mlp(params[2:], x)


NETWORKS = {"mlp": mlp, "cnn": cnn}
