"""Processes that hold a shard of the samples each (torch.distributed): what they agree on, and the sums over them.

L = sum_n p_n l_n goes over the samples of all ranks: a batch weighs its number of terms over that of all ranks together, so shards may be of any size, and
empty. Every rank computes its part of the loss, the gradient or a product, then all learn whether all of them could, and only then the parts are added up: an
exception on one rank is raised on every rank, where a rank that waited for the sum would wait for ever. The sums are the same to the bit everywhere.
"""

from __future__ import annotations

import copy
import json
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from .batches import Batches
from .losses import Loss

__all__ = ["Ranks", "ranks_of"]

OK, FAILED, INTERRUPTED = 0, 1, 2
# What one rank raised the others raise too, where it is one of these; else RuntimeError.
RAISED = {c.__name__: c for c in (ArithmeticError, IndexError, KeyError, MemoryError, NotImplementedError, TypeError, ValueError, ZeroDivisionError)}
LONGEST = 2000  # characters of a message that go round


def ranks_of(model: Any, process_group: Any, loader: Any = None) -> Ranks:
    """The ranks an analysis is spread over: one process alone for None, unless ``model`` is a DistributedDataParallel, which brings its group.

    process_group: None, a group, or "world". loader: looked at for a sampler to tell of. Raises TypeError, ValueError naming ``process_group``."""
    notes = []
    in_use = dist.is_available() and dist.is_initialized()
    if process_group is None and isinstance(model, nn.parallel.DistributedDataParallel):
        process_group = model.process_group
        notes.append("the loaders of all ranks count: the process group is that of DistributedDataParallel")
    if process_group is None:
        if in_use and dist.get_world_size() > 1:
            notes.append(f"the samples of rank {dist.get_rank()} alone, of {dist.get_world_size()}; process_group='world' is for those of all")
        return Ranks(None, notes=notes)
    if not in_use:
        raise ValueError("process_group: torch.distributed is not in use; call torch.distributed.init_process_group() first, or leave process_group=None")
    if isinstance(process_group, str):
        if process_group != "world":
            raise ValueError(f"process_group: wanted a group of torch.distributed, 'world' or None, got {process_group!r}")
        process_group = dist.group.WORLD
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(f"process_group: wanted a group of torch.distributed, 'world' or None, got {type(process_group).__name__}")
    if dist.get_rank(process_group) < 0:
        raise ValueError("process_group: this process is not in the group")
    if dist.get_world_size(process_group) == 1:
        return Ranks(None)
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        more = sampler.total_size - len(sampler.dataset)  # type: ignore[arg-type]
        if more:
            notes.append(f"the DistributedSampler makes all shards equal: samples that {'count twice' if more > 0 else 'are left out'}: {abs(more)}")
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return Ranks(process_group, notes=notes, near=None if first is None else first.device)


class Ranks:
    """The processes of ``group``; None: this one alone, for which everything here does nothing. All ranks have to make the same calls in the same order.

    rank, size: within the group. notes: what is to be told. near: the model's device, which numbers go through where the group takes none of the CPU's."""

    def __init__(self, group: dist.ProcessGroup | None, *, notes: Sequence[str] = (), near: torch.device | None = None) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.notes = tuple(notes)
        self._near = near
        self._interrupted = False
        self._devices: list[str] = []
        if group is not None:
            self._devices = [part.split(":")[0] for part in str(dist.get_backend_config(group)).split(",")]

    # -- going round -----------------------------------------------------------------------------------------------------

    def home(self, device: torch.device) -> torch.device:
        """``device`` where the group's backend takes its tensors, else one whose tensors it takes."""
        if device.type in self._devices:
            return device
        kind = "cpu" if "cpu" in self._devices else self._devices[0]
        if self._near is not None and self._near.type == kind:
            return self._near
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

    def add_up(self, t: Tensor) -> None:
        """t <- sum of the ranks' t, the same bits on all of them."""
        if self.size > 1:
            moved = t.to(self.home(t.device)).contiguous()
            dist.all_reduce(moved, group=self.group)
            if moved is not t:
                t.copy_(moved)

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The ranks' lists of integers, each as long as this one."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(list(numbers), dtype=torch.int64, device=self.home(torch.device("cpu")))
        out = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(out, mine, group=self.group)
        return [[int(i) for i in t.tolist()] for t in out]

    def gather_text(self, text: str) -> list[str]:
        """The ranks' texts."""
        if self.size == 1:
            return [text]
        data = text.encode()
        lengths = [row[0] for row in self.gather([len(data)])]
        mine = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
        mine = mine.to(self.home(mine.device))
        out = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(out, mine, group=self.group)
        return [bytes(t.cpu().tolist()[:length]).decode() for t, length in zip(out, lengths, strict=True)]

    def first(self, t: Tensor) -> None:
        """t <- the first rank's t, of any dtype."""
        self.of_one(t, 0)

    def of_one(self, t: Tensor, rank: int) -> None:
        """t <- that rank's t, of any dtype."""
        if self.size > 1:
            moved = t.to(self.home(t.device)).contiguous()
            dist.broadcast(moved.reshape(-1).view(torch.uint8), dist.get_global_rank(_known(self.group), rank), group=self.group)
            if moved is not t:
                t.copy_(moved)

    def concatenated(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ranks' arrays (m, ...), alike but for m, one behind the other."""
        if self.size == 1:
            return x
        counts = [row[0] for row in self.gather([len(x)])]
        mine = torch.zeros((max(counts), *x.shape[1:]), dtype=torch.float64)
        mine[: len(x)] = torch.from_numpy(np.ascontiguousarray(x))
        mine = mine.to(self.home(mine.device))
        out = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(out, mine, group=self.group)
        return np.concatenate([t[:count].cpu().numpy() for t, count in zip(out, counts, strict=True)])

    def total(self, x: float) -> float:
        """Sum of the ranks' x."""
        t = torch.tensor([x], dtype=torch.float64)
        self.add_up(t)
        return float(t[0])

    def least(self, x: int) -> int:
        """The smallest of the ranks' x: what all of them have, of memory say."""
        return min(row[0] for row in self.gather([x]))

    # -- errors and interrupts -------------------------------------------------------------------------------------------

    @contextmanager
    def agreed(self, what: str, vectors: Tensor | None = None) -> Iterator[None]:
        """Run the body, in which no rank waits for another; then go on together or raise together.

        An exception of one rank is raised on all: there as it was, elsewhere with the rank's number. what: a name of the step, vectors: what it works on;
        ranks that are at different steps, or have different vectors, raise RuntimeError."""
        if self.size == 1:
            yield
            return
        failure: BaseException | None = None
        try:
            yield
        except BaseException as why:
            failure = why
        self._exchange(what, failure, vectors)

    def _exchange(self, what: str, failure: BaseException | None, vectors: Tensor | None) -> None:
        interrupted = isinstance(failure, KeyboardInterrupt) or (failure is None and self._interrupted)
        status = INTERRUPTED if interrupted else OK if failure is None else FAILED
        bits = 0 if vectors is None or status != OK else _checksum(vectors)
        try:
            told = self.gather([status, zlib.crc32(what.encode()), bits])
            states = [row[0] for row in told]
            texts = [] if FAILED not in states else self.gather_text(f"{type(failure).__name__}\n{failure}"[:LONGEST])
        except Exception as lost:  # a rank is gone, or the time the group allows is over
            raise (failure or lost) from lost
        if status == FAILED and failure is not None:
            raise failure
        if FAILED in states:
            rank = states.index(FAILED)
            kind, _, message = texts[rank].partition("\n")
            raise RAISED.get(kind, RuntimeError)(f"rank {rank} failed at {what}: {kind}: {message}")
        if INTERRUPTED in states:
            self._interrupted = False
            raise KeyboardInterrupt
        for column, words in ((1, "are at different steps, this one at"), (2, "do not have the same vectors for")):
            if len({row[column] for row in told}) > 1:
                raise RuntimeError(f"process_group: the ranks {words} {what}; all of them have to make the same calls with the same arguments")

    @contextmanager
    def one_interrupt(self) -> Iterator[None]:
        """Ctrl-C, on whichever rank, ends the body at the next step that is agreed on, on all ranks at once."""
        if self.size == 1 or threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
            yield
            return

        def note(number: int, frame: Any) -> None:
            self._interrupted = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            late, self._interrupted = self._interrupted, False
            if late and callable(before):
                before(signal.SIGINT, None)

    def stopping(self, report: Callable[..., None]) -> Callable[..., None]:
        """``report``, which raises KeyboardInterrupt where Ctrl-C came; for work inside agreed inside one_interrupt."""

        def told(*words: Any) -> None:
            report(*words)
            if self._interrupted:
                raise KeyboardInterrupt

        return told

    def asked_to_stop(self) -> bool:
        """Whether Ctrl-C came since the last time, inside one_interrupt."""
        asked, self._interrupted = self._interrupted, False
        return asked

    # -- one model, one loss ---------------------------------------------------------------------------------------------

    def same_model(self, model: nn.Module, settings: str) -> dict[str, Tensor]:
        """Check that all ranks have the same parameters, bit for bit, and ``settings``. -> the buffers that this rank takes from the first one.

        Statistics of batch normalisation differ between ranks in ordinary training; parameters do not. Raises ValueError naming the first that does."""
        if self.size == 1:
            return {}
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        outline = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in (*parameters.items(), *buffers.items())]
        self._same_lines(outline, "the models differ")
        self._same_lines([settings], "the arguments or devices differ")
        sums = self.gather([_checksum(t) for t in (*parameters.values(), *buffers.values())])
        differ = [next((r for r in range(1, self.size) if sums[r][i] != sums[0][i]), 0) for i in range(len(outline))]
        for name, rank in zip(parameters, differ, strict=False):
            if rank:
                raise ValueError(f"model: parameter {name!r} of rank {rank} is not that of rank 0; all ranks need the same weights")
        taken = {name: buffers[name].detach().clone() for name, rank in zip(buffers, differ[len(parameters) :], strict=True) if rank}
        for t in taken.values():
            self.first(t)
        if taken:
            self.notes += (f"buffers differ between ranks, those of rank 0 are used: {', '.join(list(taken)[:4])}{' ...' if len(taken) > 4 else ''}",)
        return taken

    def _same_lines(self, lines: list[str], what: str) -> None:
        if len({row[0] for row in self.gather([zlib.crc32("\n".join(lines).encode())])}) == 1:
            return
        theirs = [text.split("\n") for text in self.gather_text("\n".join(lines))]
        for rank in range(1, self.size):
            for one, other in _pairs(theirs[0], theirs[rank]):
                if one != other:
                    raise ValueError(f"model: {what} between rank 0 ({one or 'nothing'}) and rank {rank} ({other or 'nothing'})")

    def same_loss(self, loss: Loss | None, batches: Batches, fn: Callable[..., Any] | None) -> Loss:
        """The loss of the first rank that has valid targets, for all of them: others may have no samples to guess from (``loss`` None) or nothing
        but ignored targets. fn: the caller's own loss function, if any. Raises ValueError where no rank has valid targets, or losses differ."""
        with self.agreed("choosing the loss"):
            terms = sum(loss.terms(b) for b in batches) if loss is not None else 0.0
        if self.size == 1:
            assert loss is not None
            return loss
        known = None if loss is None else {"name": loss.name, "shifted": loss.shifted, "form": loss.form, "from_model": loss.from_model}
        told = [json.loads(text) for text in self.gather_text(json.dumps([known, terms > 0]))]
        names = {rank: words["name"] for rank, (words, _) in enumerate(told) if words is not None}
        if len(set(names.values())) > 1:
            raise ValueError(f"loss: it differs between the ranks ({', '.join(f'rank {rank}: {name}' for rank, name in names.items())})")
        chosen = next((words for words, valid in told if valid), None)
        if chosen is None:
            raise ValueError("loader: no valid targets in the sample set of any rank")
        if loss is None:
            loss = Loss(chosen["name"], fn, from_model=chosen["from_model"])
        elif (loss.shifted, loss.form) != (chosen["shifted"], chosen["form"]):
            loss = copy.copy(loss)
        loss.shifted, loss.form = chosen["shifted"], chosen["form"]
        return loss

    def weights(self, loss: Loss, batches: Batches) -> list[float]:
        """terms_b / sum of the terms of all ranks, for every batch of this one; see Loss.weights."""
        if self.size == 1:
            return loss.weights(batches)
        with self.agreed("weighing the batches"):
            terms = [loss.terms(b) for b in batches]
        total = self.total(sum(terms))
        if not total > 0:
            raise ValueError("loader: no valid targets in the sample set of any rank")
        samples = [row[0] for row in self.gather([batches.n_samples])]
        listed = ", ".join(str(n) for n in samples[:8]) + (", ..." if self.size > 8 else "")
        self.notes += (f"{sum(samples):,} samples, over {self.size} ranks: {listed}",)
        return [t / total for t in terms]

    def united(self, lists: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """The entries of all ranks' lists, each once."""
        told = [json.loads(text) for text in self.gather_text(json.dumps(lists))]
        return {name: tuple(dict.fromkeys(entry for one in told for entry in one[name])) for name in lists}


def _known(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    assert group is not None
    return group


def _pairs(a: list[str], b: list[str]) -> Iterator[tuple[str, str]]:
    for i in range(max(len(a), len(b))):
        yield (a[i] if i < len(a) else ""), (b[i] if i < len(b) else "")


def _checksum(t: Tensor) -> int:
    """CRC-32 of the entries' bits."""
    data = t.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(data.view(torch.uint8).numpy().data) if data.numel() else 0
