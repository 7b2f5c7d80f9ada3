"""Coefficients of banded factorisations for correlated noise.

A strategy C is lower-triangular Toeplitz with the coefficients c_0, c_1, ... of one column, whose norm is 1. Noise
C^-1 z has less error than z on prefix sums, which is where the weights of SGD are after each step.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.signal import lfilter


def square_root(bands: int) -> np.ndarray:
    """(bands,) coefficients of the square root of the prefix sum, binom(2j, j)/4^j, cut off and of norm 1.

    Kalinin and Lampert 2024, "Banded square root matrix factorization".
    """
    j = np.arange(1, bands)
    c = np.concatenate([[1.0], np.cumprod((2 * j - 1) / (2 * j))])
    return np.asarray(c / np.linalg.norm(c))


def prefix_error(c: np.ndarray, steps: int) -> float:
    """Root of the mean variance of the ``steps`` prefix sums of C^-1 z with standard normal z.

    Choquette-Choo et al. 2023: |A C^-1|_F / sqrt(steps) with A all ones below the diagonal.
    """
    return float(np.sqrt(_weights(steps) @ _prefix(c, steps) ** 2 / steps))


def optimised(bands: int, steps: int) -> np.ndarray:
    """Coefficients of norm 1 with the least `prefix_error` over ``steps`` steps, by L-BFGS from `square_root`.

    There are ``bands`` of them, or ``steps`` if that is less; never worse than `square_root`.
    """
    start = square_root(min(bands, steps))
    if len(start) == 1:
        return start

    def loss(rest: np.ndarray) -> tuple[float, np.ndarray]:
        """log(|c|^2 |A C^-1|_F^2) for c_0 = 1: free of scale."""
        c = np.concatenate([[1.0], rest])
        square, error = float(c @ c), _loss(c, steps)
        return float(np.log(square * error[0])), 2 * rest / square + error[1][1:] / error[0]

    found = minimize(loss, start[1:] / start[0], jac=True, method="L-BFGS-B")
    c = np.concatenate([[1.0], found.x])
    c /= np.linalg.norm(c)
    return min(c, start, key=lambda coefficients: prefix_error(coefficients, steps))


def _weights(steps: int) -> np.ndarray:
    """In how many prefix sums each coefficient of A C^-1 stands."""
    return np.arange(steps, 0, -1)


def _prefix(c: np.ndarray, steps: int) -> np.ndarray:
    """The coefficients of A C^-1: those of 1/((1-x) c(x))."""
    return np.asarray(lfilter([1.0], c, np.ones(steps)))


def _loss(c: np.ndarray, steps: int) -> tuple[float, np.ndarray]:
    """|A C^-1|_F^2 and its gradient in c: the derivative of `_prefix` in c_j is -1/((1-x) c(x)^2), j places on."""
    e, weights = _prefix(c, steps), _weights(steps)
    moved, pull = lfilter([1.0], c, e), weights * e
    gradient = [-2 * float(pull[j:] @ moved[: steps - j]) for j in range(len(c))]
    return float(pull @ e), np.array(gradient)
