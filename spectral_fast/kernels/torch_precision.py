"""Products of float32 numbers in all of float32's digits, whatever the program has allowed: TF32 has ten bits, bfloat16 seven."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["ieee_products"]


@contextmanager
def ieee_products() -> Iterator[None]:
    """Inside, torch's products, convolutions and recurrent layers keep to IEEE float32, on the CPU too; the program's own switches are put back.

    Where torch has a switch for each of them (``fp32_precision``), only these are touched: reading the older ones beside them raises."""
    switches: list[Any] = [torch.backends.cuda.matmul, *(getattr(home, part, None) for home in (torch.backends.cudnn, torch.backends.mkldnn)
                           for part in ("matmul", "conv", "rnn"))]  # fmt: skip
    switches = [switch for switch in switches if switch is not None and hasattr(switch, "fp32_precision")]
    if switches:
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value
        return
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
