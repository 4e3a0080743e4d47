"""An operator that tells of every product it makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from ..probing.operator import ModelOperator
from ..progress import Progress

__all__ = ["Reported", "Reporting"]


class Reporting:
    """Tells of every product; total is a forecast that grows when the eigensolver needs more."""

    def __init__(self, report: Progress, forecast: int) -> None:
        self._report, self.forecast, self.done = report, forecast, 0
        self.what = ""

    def of(self, op: ModelOperator, what: str) -> Reported:
        self.what = what
        return Reported(op, self)

    def tick(self, products: int, what: str = "") -> None:
        for _ in range(products):
            self.done += 1
            self.forecast = max(self.forecast, self.done)
            self._report(self.done, self.forecast, what or self.what)


class Reported:
    def __init__(self, op: ModelOperator, to: Reporting) -> None:
        self._op, self._to = op, to
        self.shape, self.dtype, self.device = op.shape, op.dtype, op.device
        self.blocks: Mapping[str, slice] = op.blocks
        self.running = op.running  # the model is put into the state of a product once for a whole run
        spread = op.sharded
        self.sharded = None if spread is None else spread.told(to.tick)

    def row_products(self, v: NDArray[Any]) -> NDArray[Any]:
        result = self._op.row_products(v)
        self._to.tick(len(v))
        return result

    def device_products(self, rows: Tensor) -> Tensor:
        result = self._op.device_products(rows)
        self._to.tick(len(rows))
        return result

    def __matmul__(self, v: Any) -> Any:
        result = self._op @ v
        self._to.tick(1)
        return result
