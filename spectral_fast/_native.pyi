from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

def levels() -> list[str]: ...
def default_level() -> str: ...
def release_memory() -> None: ...
def threads() -> int: ...
def power_law(
    values: NDArray[np.float64], offsets: NDArray[np.int64], *, level: str | None = None, threads: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]: ...
def singular_values(
    a: NDArray[Any], *, format: str, accuracy: str = "standard", level: str | None = None, threads: int = 0
) -> tuple[NDArray[np.float64], dict[str, float]]: ...
def complex_singular_values(
    re: NDArray[np.float64], im: NDArray[np.float64], *, level: str | None = None, threads: int = 0
) -> tuple[NDArray[np.float64], dict[str, float]]: ...
def marchenko_pastur(
    values: NDArray[np.float64], d_max: int, start: float, quantile: float, *, min_bulk: int, level: str | None = None, threads: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]: ...
def randomized_svd(
    a: NDArray[Any],
    *,
    format: str,
    rank: int,
    width: int,
    blocks: int,
    krylov: bool,
    sketch: int,
    sketch_width: int,
    sketch_blocks: int,
    n_iter: int,
    tol: float,
    seed: int,
    omega: NDArray[np.float64] | None = None,
    level: str | None = None,
    threads: int = 0,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]: ...
def storage_noise(
    w: NDArray[Any], *, format: str, floor: int, level: str | None = None, threads: int = 0
) -> tuple[int, tuple[int, int], int, int, int, int, int, int, int, int, float, float]: ...
def decode(
    raw: NDArray[np.uint8],
    out: NDArray[np.float32],
    *,
    format: str,
    steps: NDArray[np.float32] | None = None,
    byteorder: str = "little",
    level: str | None = None,
    threads: int = 0,
) -> None: ...
def class_moments(
    features: NDArray[Any],
    *,
    format: str,
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
    means: NDArray[np.float64],
    scatter: NDArray[np.float64],
    spread: NDArray[np.float64],
    level: str | None = None,
    threads: int = 0,
) -> None: ...
def gradient_gram(
    gram: NDArray[np.float64],
    a: NDArray[Any],
    b: NDArray[Any] | None = None,
    a2: NDArray[Any] | None = None,
    b2: NDArray[Any] | None = None,
    *,
    algorithm: str,
    times: NDArray[np.float64] | None = None,
    level: str | None = None,
    threads: int = 0,
) -> None: ...
def orthogonalize(
    basis: NDArray[Any],
    t: int,
    w: NDArray[Any],
    floor: NDArray[np.float64],
    *,
    relative: float = 0.0,
    reduce: Callable[[NDArray[np.float64]], None] | None = None,
    level: str | None = None,
    threads: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]: ...
def recombine(basis: NDArray[Any], m: int, s: NDArray[np.float64], into: NDArray[Any], *, level: str | None = None, threads: int = 0) -> None: ...
def exp_neg(t: float) -> float: ...
def log_ratio(a: float, b: float) -> float: ...
