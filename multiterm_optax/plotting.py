"""Plots of how terms compete: weights, dominance, angles and trade-offs.

Each function draws one plot on the given axes, or on new ones, and returns the axes.
Set titles and sizes, and save files, with Matplotlib. Plots need the extra
``plotting``.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from multiterm_optax import _named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["cosines", "dominance", "pareto_front", "weights"]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
# A second cue beside the colour.
_STYLES = ("-", "--", ":", "-.")
_FIFTHS = ("0 to 20 %", "20 to 40 %", "40 to 60 %", "60 to 80 %", "80 to 100 %")
_MAX_WRITTEN = 12  # in a heat map of more terms, the numbers are too small to read


def weights(
    history: Any,
    *,
    steps: Any = None,
    labels: Any = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plots the weights of the terms over the steps, with one line for each term.

    Lines differ in colour, and the first four in style, too.

    Args:
      history: Weights [T, K], stacked from the field ``weights`` of a state.
      steps: The T steps to which the weights belong; by default 0 to T - 1.
      labels: K names, or the losses, whose names are used; by default "term 0" to
        "term K - 1".
      ax: Axes to draw on; by default new ones.

    Returns:
      The axes, which start at 0; ``ax.set_yscale("log")`` makes them logarithmic.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: A shape does not fit.

    Example:
      >>> from multiterm_optax import plotting
      >>> losses = {"physics": 3.0, "data": 1.0}
      >>> ax = plotting.weights([[0.5, 0.5], [0.8, 0.2]], labels=losses)
      >>> [line.get_label() for line in ax.get_lines()]
      ['data', 'physics']
    """
    values = _array(history, "history", "weights", "[T, K]", 2)
    names = _labels(labels, values.shape[1], "weights")
    at = _steps(steps, len(values), "weights")
    ax = _axes(ax)
    for term, name in enumerate(names):
        colour, style = _COLOURS[term % len(_COLOURS)], _STYLES[term % len(_STYLES)]
        ax.plot(at, values[:, term], label=name, color=colour, linestyle=style)
    # Zero is in the picture, at its edge, as a datum and not as a limit: a logarithmic
    # scale that is set later leaves it out, and would show nothing above a limit of 0.
    for line in ax.get_lines():
        line.sticky_edges.y.append(0)
    ax.update_datalim([(at[0], 0)] if len(at) else [])
    ax.autoscale_view()
    ax.set(xlabel="step", ylabel="weight")
    ax.legend(frameon=False)
    return _plain(ax)


def dominance(
    shares: Any,
    term: int | str = 0,
    *,
    steps: Any = None,
    labels: Any = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plots how many parameters a term dominates over the steps, as stacked areas.

    Args:
      shares: What :func:`multiterm_optax.metrics.dominance_shares` returned at T
        steps, stacked: [T, K, 5].
      term: Index of the term, or its name if labels are given.
      steps: The T steps to which the shares belong; by default 0 to T - 1.
      labels: K names, or the losses, whose names are used; by default "term 0" to
        "term K - 1".
      ax: Axes to draw on; by default new ones.

    Returns:
      The axes. The darkest area shows the parameters that this term moves almost alone.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: A shape does not fit, or there is no such term.

    Source:
      Yang et al., "AdaTask", AAAI 2023, Fig. 2.

    Example:
      >>> import numpy as np
      >>> from multiterm_optax import plotting
      >>> ax = plotting.dominance(np.full((4, 2, 5), 0.2), term=1)
      >>> len(ax.collections)
      5
    """
    values = _array(shares, "shares", "dominance", "[T, K, 5]", 3)
    if values.shape[2] != len(_FIFTHS):
        raise ValueError(
            "plotting.dominance: shares must have shape [T, K, 5], found "
            f"{values.shape}."
        )
    names = _labels(labels, values.shape[1], "dominance")
    if isinstance(term, str):
        if term not in names:
            raise ValueError(
                f"plotting.dominance: term must be one of {', '.join(names)}, found "
                f"{term!r}."
            )
        term = names.index(term)
    if not 0 <= term < values.shape[1]:
        raise ValueError(
            f"plotting.dominance: term must be in [0, {values.shape[1] - 1}], found "
            f"{term}."
        )
    at = _steps(steps, len(values), "dominance")
    ax = _axes(ax)
    greys = [str(level) for level in np.linspace(0.9, 0.15, len(_FIFTHS))]
    ax.stackplot(at, values[:, term].T, labels=_FIFTHS, colors=greys)
    ax.set(xlabel="step", ylabel="share of the parameters", ylim=(0, 1))
    ax.margins(x=0)
    ax.legend(title=f"moved by {names[term]}", frameon=True, fontsize="small")
    return _plain(ax)


def cosines(matrix: Any, *, labels: Any = None, ax: "Axes | None" = None) -> "Axes":
    """Plots the cosines between the terms' gradients as a heat map.

    Args:
      matrix: What :func:`multiterm_optax.metrics.cosines` returns, [K, K].
      labels: K names, or the losses, whose names are used; by default 0 to K - 1.
      ax: Axes to draw on; by default new ones.

    Returns:
      The axes. Red means that the terms conflict, and blue that they agree. For up to
      12 terms the numbers are written into the cells.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: A shape does not fit.

    Example:
      >>> from multiterm_optax import plotting
      >>> ax = plotting.cosines([[1.0, -0.5], [-0.5, 1.0]])
      >>> [text.get_text() for text in ax.texts]
      ['1.00', '-0.50', '-0.50', '1.00']
    """
    values = _array(matrix, "matrix", "cosines", "[K, K]", 2)
    if values.shape[0] != values.shape[1]:
        raise ValueError(
            f"plotting.cosines: matrix must have shape [K, K], found {values.shape}."
        )
    num_terms = len(values)
    if labels is None:
        labels = [str(term) for term in range(num_terms)]
    names = _labels(labels, num_terms, "cosines")
    ax = _axes(ax)
    image = ax.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    ax.set_xticks(range(num_terms), names)
    ax.set_yticks(range(num_terms), names)
    ax.spines[:].set_visible(False)
    if num_terms <= _MAX_WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    ax.figure.colorbar(image, ax=ax, label="cosine")
    return ax


def pareto_front(
    losses: Any, *, labels: Any = None, ax: "Axes | None" = None
) -> "Axes":
    """Plots the losses of several runs, and the front of the runs that no other beats.

    Args:
      losses: One row for each run, [N, 2].
      labels: Names of the two terms, or the two losses, whose names are used; by
        default "term 0" and "term 1".
      ax: Axes to draw on; by default new ones.

    Returns:
      The axes. A run whose losses are not finite is left out.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: A shape does not fit.

    Example:
      >>> from multiterm_optax import plotting
      >>> runs = [[1.0, 3.0], [2.0, 2.0], [3.0, 2.5], [3.0, 1.0]]
      >>> ax = plotting.pareto_front(runs)
      >>> ax.get_lines()[0].get_xydata().tolist()  # the third is beaten by the second
      [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]
    """
    values = _array(losses, "losses", "pareto_front", "[N, 2]", 2)
    if values.shape[1] != 2:
        raise ValueError(
            f"plotting.pareto_front: losses must have shape [N, 2], found "
            f"{values.shape}."
        )
    names = _labels(labels, 2, "pareto_front")
    values = values[np.isfinite(values).all(axis=1)]
    beaten = [
        bool(np.any((values <= run).all(axis=1) & (values < run).any(axis=1)))
        for run in values
    ]
    front = np.unique(values[~np.array(beaten, bool)], axis=0)
    ax = _axes(ax)
    ax.scatter(*values[np.array(beaten, bool)].T, color="0.7", label="beaten")
    ax.plot(*front.T, "o-", color=_COLOURS[0], drawstyle="steps-post", label="front")
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.legend(frameon=False)
    return _plain(ax)


def _array(value: Any, argument: str, name: str, shape: str, ndim: int) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim != ndim:
        raise ValueError(
            f"plotting.{name}: {argument} must have shape {shape}, found {array.shape}."
        )
    return array


def _labels(labels: Any, number: int, name: str) -> list[str]:
    """K names: those given, or those of the losses."""
    if labels is None:
        return [f"term {term}" for term in range(number)]
    if isinstance(labels, list | tuple) and all(isinstance(x, str) for x in labels):
        names = tuple(labels)
    else:
        terms = _named.of(labels)
        names = None if terms is None else terms.names
    if names is None or len(names) != number:
        raise ValueError(
            f"plotting.{name}: labels must be {number} names, found {labels!r}."
        )
    return list(names)


def _steps(steps: Any, num_steps: int, name: str) -> np.ndarray:
    if steps is None:
        return np.arange(num_steps)
    at = np.asarray(steps)
    if at.shape != (num_steps,):
        raise ValueError(
            f"plotting.{name}: steps must have shape ({num_steps},), found {at.shape}."
        )
    return at


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plotting needs Matplotlib: pip install 'multiterm-optax[plotting]'."
        ) from error
    return plt.subplots(layout="constrained")[1]


def _plain(ax: "Axes") -> "Axes":
    ax.spines[["top", "right"]].set_visible(False)
    return ax
