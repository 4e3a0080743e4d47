"""The ops compiled for CUDA devices, on torch tensors; the only module that imports ``_cuda``.

Contracts: the functions of the same names in ``numpy_kernels``, with tensors of one CUDA device in and out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from .torch_lowrank import TensorLowRank

__all__ = ["device_count", "orthogonalize", "power_law", "randomized_svd", "recombine", "singular_values", "small_svd", "sweep_sums",
           "symmetric_eigenvalues", "two_stage_eigenvalues", "why_not"]  # fmt: skip

BAND_WIDTH = 32  # of the first of two stages: a warp's lanes in the second
_FULL_RANK = 1e-13  # smallest over largest value of a small factor whose right vectors are taken from its rotated rows
LOOKED_AT = (1, 2, 31, 64, 150, 300)  # sizes whose eigenvalues are compared with torch's: of a warp, in shared memory, in the device's
LARGE_LOOKED_AT = (70, 700)  # the same for two stages

why_not = ""  # why the compiled module cannot be used; empty when it can
try:
    import spectral_fast._cuda as _cuda
except ModuleNotFoundError as error:
    if error.name != "spectral_fast._cuda":
        raise
    why_not = "not built"
except ImportError as error:  # it is there but the loader refused it
    why_not = f"built but cannot be loaded: {error}"
else:
    _count, _reason = _cuda.device_count()
    if _count == 0:
        why_not = "built, but no CUDA device is visible" + (f" ({_reason})" if _reason else "")


def device_count() -> int:
    """Number of visible CUDA devices; 0 whenever ``why_not`` says why."""
    return 0 if why_not else _cuda.device_count()[0]


def singular_values(a: torch.Tensor, *, accuracy: str = "standard") -> torch.Tensor:
    """See :func:`spectral_fast.kernels.numpy_kernels.singular_values`. a: (batch, m, n) of any dtype and strides on a CUDA device.

    Gram matrices are torch's products; their eigenvalues, up to 512 of a real matrix, are computed by a block for each matrix, those of several larger ones in
    two stages. Complex matrices, a large one alone, and "high" are left to torch's functions, as in ``torch_kernels``.
    """
    from . import torch_kernels

    n = min(a.shape[1:])
    compute: dict[str, Any] = {}
    if accuracy != "high" and not a.is_complex() and a.numel() > 0:
        if n <= _cuda.MOST_EIGENVALUES:
            compute = {"eigenvalues": symmetric_eigenvalues} if _agrees_with_torch(a.device) else {}
        elif len(a) > 1 and n <= _cuda.most_band_rows(BAND_WIDTH, _where(a.device)[0]) and _bands_agree_with_torch(a.device):
            compute = {"eigenvalues": two_stage_eigenvalues}
    return torch_kernels.singular_values(a, accuracy=accuracy, **compute)


def two_stage_eigenvalues(gram: torch.Tensor) -> torch.Tensor:
    """Eigenvalues (batch, n), descending, of symmetric matrices (batch, n, n), float64, finite, of a CUDA device; ``gram`` is destroyed. 3 <= n <=
    most_band_rows. To bands by products of all matrices at once, from there to tridiagonal matrices by a block for each, by bisection a value for each
    thread."""
    import torch

    from .torch_band import band_of

    batch, n, _ = gram.shape
    band = band_of(gram.contiguous(), BAND_WIDTH, ld=2 * BAND_WIDTH, decompose=small_svd)
    work, values = gram.new_empty((batch, 2 * n)), torch.empty((batch, n), dtype=torch.float64, device=gram.device)
    device, stream = _where(gram.device)
    _cuda.band_eigenvalues(
        band=band.data_ptr(), batch=batch, n=n, width=BAND_WIDTH, work=work.data_ptr(), values=values.data_ptr(), device=device, stream=stream
    )
    return values


def symmetric_eigenvalues(gram: torch.Tensor) -> torch.Tensor:
    """Eigenvalues (batch, n), descending, of symmetric matrices (batch, n, n), float64, finite, of a CUDA device; ``gram`` is destroyed. n <= 512."""
    import torch

    a = gram.contiguous()
    values = torch.empty(a.shape[:2], dtype=torch.float64, device=a.device)
    device, stream = _where(a.device)
    _cuda.symmetric_eigenvalues(a=a.data_ptr(), batch=len(a), n=a.shape[1], values=values.data_ptr(), device=device, stream=stream)
    return values


def randomized_svd(a: torch.Tensor, **options: Any) -> TensorLowRank:
    """See :func:`spectral_fast.kernels.torch_lowrank.randomized_svd`, with the small factors decomposed by a block for each matrix."""
    from . import torch_lowrank

    if a.numel() > 0 and _small_svds_agree_with_torch(a.device):
        options["decompose"] = small_svd
    return torch_lowrank.randomized_svd(a, **options)


def small_svd(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`spectral_fast.kernels.torch_lowrank.svd_of`, which does those of more than MOST_JACOBI_ROWS rows, and those without full rank, whose right
    vectors rotations of rows do not give."""
    import torch

    from .torch_lowrank import svd_of

    batch, r, n = b.shape
    if not 0 < r <= min(n, _cuda.MOST_JACOBI_ROWS) or batch == 0:
        return svd_of(b)
    x = b.clone(memory_format=torch.contiguous_format)
    u, done = x.new_empty((batch, r, r)), x.new_empty(batch)
    device, stream = _where(b.device)
    _cuda.jacobi_rows(x=x.data_ptr(), batch=batch, r=r, n=n, u=u.data_ptr(), done=done.data_ptr(), device=device, stream=stream)
    values, order = torch.linalg.vector_norm(x, dim=2).sort(dim=1, descending=True)
    left = u.gather(1, order[..., None].expand_as(u)).mT
    right = x.gather(1, order[..., None].expand_as(x)) / torch.where(values > 0.0, values, 1.0)[..., None]
    good = (done > 0.0) & (values[:, -1] > _FULL_RANK * values[:, 0])
    if not bool(good.all()):
        bad = torch.nonzero(~good)[:, 0]
        left[bad], values[bad], right[bad] = svd_of(b[bad])
    return left, values, right


def orthogonalize(
    basis: torch.Tensor,
    t: int,
    w: torch.Tensor,
    floor: NDArray[np.float64],
    *,
    relative: float = 0.0,
    reduce: Callable[[NDArray[np.float64]], None] | None = None,
    threads: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """See :func:`spectral_fast.kernels.torch_krylov.orthogonalize`, with sweeps that read the basis once, for vector after vector of ``w``."""
    from . import torch_krylov

    sums = sweep_sums if _sweeps_agree_with_torch(w.device) else torch_krylov.sums_of
    return torch_krylov.orthogonalize(basis, t, w, floor, relative=relative, reduce=reduce, sums=sums)


def sweep_sums(v: torch.Tensor, w: torch.Tensor, minus: torch.Tensor | None, dots: bool) -> torch.Tensor:
    """See :func:`spectral_fast.kernels.torch_krylov.sums_of`; that one where there are more rows than a block has room for, or rows are not contiguous."""
    import torch

    from .torch_krylov import sums_of

    t, n = v.shape
    names = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16"}
    device, stream = _where(w.device)
    if t > _cuda.most_swept_rows(device) or n == 0 or (t and v.stride(1) != 1) or w.stride(1) != 1 or v.dtype not in names or w.dtype == torch.bfloat16:
        return sums_of(v, w, minus, dots)
    sums = torch.zeros((len(w), t + 1), dtype=torch.float64, device=w.device)
    work = torch.empty(_cuda.SWEEP_BLOCKS * (t + 1), dtype=torch.float64, device=w.device)
    less = None if minus is None else minus.mT.contiguous()
    for i in range(len(w)):
        _cuda.gram_schmidt_sweep(
            v=v.data_ptr(), v_dtype=names[v.dtype], ld=v.stride(0), t=t, w=w[i].data_ptr(), w_dtype=names[w.dtype], n=n,
            minus=0 if less is None else less[i].data_ptr(), sums=sums[i].data_ptr(), work=work.data_ptr(), dots=dots, device=device, stream=stream,
        )  # fmt: skip
    return sums.mT


def _where(device: torch.device) -> tuple[int, int]:
    """Its number and the handle of its current stream; torch's allocator keeps tensors until this stream is done with them."""
    import torch

    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


@cache
def _agrees_with_torch(device: torch.device) -> bool:
    """Whether the eigenvalues of a few matrices are torch's, on this device and driver; looked at once. Where not, a warning says so and torch is used."""
    return all(_right(symmetric_eigenvalues, n, device) for n in LOOKED_AT)


@cache
def _bands_agree_with_torch(device: torch.device) -> bool:
    """The same for the eigenvalues of large matrices, and for what finds them."""
    return _small_svds_agree_with_torch(device) and all(_right(two_stage_eigenvalues, n, device) for n in LARGE_LOOKED_AT)


def _right(eigenvalues: Callable[[torch.Tensor], torch.Tensor], n: int, device: torch.device) -> bool:
    import torch

    x = torch.rand((3, n, n), generator=torch.Generator().manual_seed(n), device="cpu", dtype=torch.float64).to(device)
    gram = x @ x.mT
    wanted = torch.linalg.eigvalsh(gram).flip(-1)
    right = bool(((eigenvalues(gram.clone()) - wanted).abs() <= 1e-12 * n * wanted[:, :1]).all())
    if not right:
        warnings.warn(f"the compiled eigenvalues of {n} x {n} matrices differ from torch's on {device}: torch's are used", RuntimeWarning, stacklevel=6)
    return right


@cache
def _small_svds_agree_with_torch(device: torch.device) -> bool:
    """The same for the singular triplets of small matrices."""
    import torch

    for r, n in ((1, 1), (2, 70), (7, 7), (16, 128), (40, 3000)):
        b = torch.rand((3, r, n), generator=torch.Generator().manual_seed(r), device="cpu", dtype=torch.float64).to(device)
        left, values, right = small_svd(b)
        wanted, one = torch.linalg.svdvals(b), torch.eye(r, dtype=b.dtype, device=device)
        away = torch.stack(((values - wanted).abs().amax() / wanted.amax(), (left.mT @ left - one).abs().amax(), (right @ right.mT - one).abs().amax(),
                            ((left * values[:, None]) @ right - b).abs().amax()))  # fmt: skip
        if not bool((away <= 1e-12 * n).all()):
            warnings.warn(f"the compiled decomposition of {r} x {n} matrices differs from torch's on {device}: torch's is used", RuntimeWarning, stacklevel=3)
            return False
    return True


@cache
def _sweeps_agree_with_torch(device: torch.device) -> bool:
    """The same for sweeps of a basis."""
    import torch

    from .torch_krylov import sums_of

    for t, n, dtype in ((0, 3, torch.float64), (5, 5000, torch.float32), (9, 300, torch.bfloat16), (3, 70_001, torch.float64)):
        generator = torch.Generator().manual_seed(n)
        v = torch.rand((t, n), generator=generator, device="cpu").to(device, dtype)
        w, minus = torch.rand((2, n), generator=generator, device="cpu").to(device), torch.rand((t, 2), generator=generator, device="cpu").double().to(device)
        for less in (None, minus):
            one, other = w.clone(), w.clone()
            got, wanted = sweep_sums(v, one, less, True), sums_of(v, other, less, True)
            if not bool(((got - wanted).abs() <= 1e-12 * n * (t + 1)).all() and torch.allclose(one, other, rtol=1e-5, atol=1e-6)):
                warnings.warn(f"the compiled sweep of {t} rows of {n} numbers differs from torch's on {device}: torch's is used", RuntimeWarning, stacklevel=4)
                return False
    return True


def recombine(basis: torch.Tensor, m: int, s: NDArray[np.float64], into: torch.Tensor, *, threads: int = 0) -> None:
    """See :func:`spectral_fast.kernels.torch_krylov.recombine`: torch's products."""
    from . import torch_krylov

    torch_krylov.recombine(basis, m, s, into)


def power_law(values: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`spectral_fast.kernels.numpy_kernels.power_law`. values: (total,) float64, offsets: (n_spectra + 1,) int64, one device."""
    import torch

    if values.device.type != "cuda":
        raise ValueError(f"values: wanted a tensor on a CUDA device, got {values.device}")
    from .torch_spectra import check_spectra

    check_spectra(values, offsets)
    x, bounds = values.detach().contiguous(), offsets.contiguous()
    total, n_spectra = x.numel(), bounds.numel() - 1
    alpha, D, best = torch.empty_like(x), torch.empty_like(x), torch.empty(n_spectra, dtype=torch.int64, device=x.device)
    work = torch.empty(3 * total, dtype=torch.float64, device=x.device)
    device, stream = _where(x.device)
    _cuda.power_law(
        values=x.data_ptr(), offsets=bounds.data_ptr(), total=total, n_spectra=n_spectra, alpha=alpha.data_ptr(), D=D.data_ptr(),
        best=best.data_ptr(), work=work.data_ptr(), device=device, stream=stream,
    )  # fmt: skip
    return alpha, D, best
