"""The ops compiled for CUDA devices, on torch tensors; the only module that imports ``_cuda``.

Contracts: the functions of the same names in ``numpy_kernels``, with tensors of one CUDA device in and out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["device_count", "power_law", "why_not"]

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


def power_law(values: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`spectral_fast.kernels.numpy_kernels.power_law`. values: (total,) float64, offsets: (n_spectra + 1,) int64, one device."""
    import torch

    for name, tensor, dtype in (("values", values, torch.float64), ("offsets", offsets, torch.int64)):
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: wanted a one-dimensional {dtype} tensor, got {tensor.dtype}")
        if tensor.ndim != 1:
            raise ValueError(f"{name}: wanted a one-dimensional {dtype} tensor, got {tensor.ndim} dimensions")
        if tensor.device.type != "cuda" or tensor.device != values.device:
            raise ValueError(f"{name}: wanted a tensor on one CUDA device, got {tensor.device}")
    _check(values, offsets)
    x, bounds = values.detach().contiguous(), offsets.contiguous()
    total, n_spectra = x.numel(), bounds.numel() - 1
    alpha, D, best = torch.empty_like(x), torch.empty_like(x), torch.empty(n_spectra, dtype=torch.int64, device=x.device)
    work = torch.empty(3 * total, dtype=torch.float64, device=x.device)
    stream = torch.cuda.current_stream(x.device)  # torch's allocator keeps the tensors until this stream is done with them
    _cuda.power_law(
        values=x.data_ptr(), offsets=bounds.data_ptr(), total=total, n_spectra=n_spectra, alpha=alpha.data_ptr(), D=D.data_ptr(),
        best=best.data_ptr(), work=work.data_ptr(), device=stream.device_index, stream=stream.cuda_stream,
    )  # fmt: skip
    return alpha, D, best


def _check(values: torch.Tensor, offsets: torch.Tensor) -> None:
    """The checks of the numpy kernel; they wait for the device."""
    import torch

    total = values.numel()
    if offsets.numel() < 1 or int(offsets[0]) != 0 or int(offsets[-1]) != total or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets: wanted the n_spectra + 1 ascending bounds of the spectra, from 0 to {total}")
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ValueError("values: a spectrum has to be positive and finite")
    descends = torch.nonzero(values.diff() < 0).flatten() + 1
    if not bool(torch.isin(descends, offsets).all()):
        raise ValueError("values: a spectrum has to be ascending")
