"""The ops in torch's own functions: what a device computes where no kernel of ours is compiled for it. Tensors of one device in and out.

Contracts: the functions of the same names in ``numpy_kernels``, with tensors in the place of arrays. What has to be decided on the way (a rank, a vector
that is lost) is decided on the host from a few numbers; matrices never leave their device. Torch chooses its own ways to multiply, so that a matrix's
result may depend on its batch in the last bits, within the bounds that are promised.
"""

from __future__ import annotations

why_not = ""  # why these cannot be used; empty when they can
try:
    from .torch_class_moments import class_moments
    from .torch_gram import gradient_gram
    from .torch_krylov import orthogonalize, recombine
    from .torch_lowrank import randomized_svd
    from .torch_spectra import power_law, singular_values
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    why_not = "torch is not installed"

__all__ = ["class_moments", "gradient_gram", "orthogonalize", "power_law", "randomized_svd", "recombine", "singular_values", "why_not"]
