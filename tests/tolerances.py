"""How far two correct computations may differ."""

from __future__ import annotations

from typing import Any

import numpy as np


def tolerance(dtype: Any, n: int) -> float:
    """Relative error, against the norm of the data, allowed to results of sums of ``n`` terms in ``dtype``.

    Rounding errors of one sum of n terms grow like sqrt(n) eps with overwhelming probability (Higham & Mary 2019: constant
    lambda in sqrt(n) lambda eps; at lambda = 4 the failure probability is below 2 n exp(-8)). An eigenvalue or a product chain
    passes through a handful of such sums (reduction, orthogonalization, back-transformation), for which another factor 4 stands.
    Never widened for a test: what misses it is wrong.
    """
    return 16.0 * float(np.sqrt(max(n, 1))) * float(np.finfo(dtype).eps)
