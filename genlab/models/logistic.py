"""Logistic regression with a penalty on the weights, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize


def fit_logistic(features: ArrayLike, labels: ArrayLike, penalty: float = 1.0) -> tuple[NDArray[np.float64], float]:
    """Minimises mean log-loss + penalty |w|^2 / 2n by L-BFGS until the gradient is below 1e-8; the bias is free.

    Args:
        features: (N, D).
        labels: (N,), 0 or 1.

    Returns:
        w (D,) and the bias; P(1) = sigmoid(features @ w + bias).
    """
    x, signs = np.asarray(features, np.float64), 2.0 * np.asarray(labels, np.float64) - 1
    n = len(x)

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (x @ theta[1:] + theta[0])
        slopes = -signs * np.exp(-np.logaddexp(0, margins)) / n
        value = np.logaddexp(0, -margins).mean() + penalty * theta[1:] @ theta[1:] / (2 * n)
        return float(value), np.concatenate([[slopes.sum()], x.T @ slopes + penalty * theta[1:] / n])

    options: Any = {"gtol": 1e-8, "ftol": 0.0, "maxiter": 10_000}
    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options=options)
    return found.x[1:], float(found.x[0])
