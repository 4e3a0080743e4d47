"""What eigsh and spectral_density ask of an operator that works in several processes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from .share import Share

__all__ = ["Spread", "spread_of"]


@runtime_checkable
class Spread(Protocol):
    """What ``op.sharded`` is for an operator that works in several processes: its products (b, width) for the columns of ``share``. None: one process."""

    share: Share

    def __call__(self, v: NDArray[Any], /) -> NDArray[Any]: ...

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (k, width), a part in every process -> whole rows (k, n) in all of them."""

    def least(self, x: int) -> int:
        """The smallest of the processes' x."""

    def one_interrupt(self) -> AbstractContextManager[None]:
        """Ctrl-C in one process ends the body in all of them at the same product."""


def spread_of(op: Any) -> Spread | None:
    """How the basis of ``op`` is spread over processes; None: every process holds all of it."""
    spread: Spread | None = getattr(op, "sharded", None)
    return spread
