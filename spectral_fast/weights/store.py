"""A scan that outlives its process: one SQLite file, to which every matrix is written as soon as its values are there.

Table ``spectra`` holds what took the time, the singular values (float64, little-endian) and what the entries told; everything else follows from it and is
computed again when a scan is resumed or a store opened, by the same code and to the same bits. ``matrices`` and ``skipped`` are the result in columns, for
other tools; they are written when the scan ends.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..linalg.arrays import FORMATS
from ..metrics.norms import SPECTRUM_METRICS
from ..metrics.rank import RULES, StorageNoise
from ..results import Skipped, Status
from .adapters import LoraPair
from .batches import OUT_OF_MEMORY, Pending
from .fits import TAIL_METRICS
from .sources import TensorEntry, TensorList, TensorRecord
from .spectra import MatrixSpectrum, WeightSpectra
from .structure import MatrixPlan

__all__ = ["FORMAT", "ScanStore", "StoreError", "fingerprint", "read_store"]

FORMAT = "1"  # of the file; another one is not read

_METRICS = (*SPECTRUM_METRICS, *TAIL_METRICS, "near_zero_fraction", "condition_number_is_lower_bound")
_RANKS = tuple(f"rank_{rule}" for rule in RULES)
_SCHEMA = {
    "run": "CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "spectra": (
        "CREATE TABLE spectra (name TEXT PRIMARY KEY, plan TEXT NOT NULL, s BLOB, bound REAL, why TEXT NOT NULL, noise REAL, noise_precision INTEGER NOT NULL, "
        "noise_format TEXT NOT NULL, zero_rows INTEGER NOT NULL, zero_columns INTEGER NOT NULL, redone INTEGER NOT NULL, frobenius REAL, backend TEXT NOT NULL)"
    ),
    "matrices": (
        "CREATE TABLE matrices (name TEXT PRIMARY KEY, status TEXT NOT NULL, reason TEXT NOT NULL, kind TEXT NOT NULL, role TEXT NOT NULL, "
        "rows INTEGER NOT NULL, columns INTEGER NOT NULL, dtype TEXT NOT NULL, "
        f"{', '.join(f'{name} REAL' for name in _METRICS)}, {', '.join(f'{name} INTEGER' for name in _RANKS)}, "
        "alpha REAL, alpha_stderr REAL, n_tail INTEGER, storage_noise REAL, bound REAL)"
    ),
    "skipped": "CREATE TABLE skipped (name TEXT NOT NULL, reason TEXT NOT NULL, shape TEXT)",
}
_PATIENCE_S = 30.0  # while another process reads the store
_SAMPLE = 1 << 20  # bytes hashed at both ends of a file
_MAX_VALUES = 1 << 31
_FAR = 1e100
_MAX_FAILED = 1 << 25  # values of failed matrices, NaN all of them and written nowhere


class StoreError(ValueError):
    """A store that cannot be used: of another scan, of another version, or no store at all."""


class ScanStore:
    """The store of one scan, open for writing. Use as a context manager."""

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any], resume: bool = True) -> None:
        """about: what a scan must have in common with the one that made the store to go on with it, as JSON-safe values.

        Raises StoreError where there is a file that is no store, or one of another scan (with ``resume=False`` a store is begun anew).
        """
        self.path = Path(path)
        self._about = {key: json.dumps(value, sort_keys=True) for key, value in {"format": FORMAT, **about}.items()}
        if not self.path.parent.is_dir():
            raise StoreError(f"store: {self.path}: no such directory {self.path.parent}")
        there = self.path.exists() and self.path.stat().st_size > 0
        try:
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE_S, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"store: {self.path}: {error}") from error
        try:
            # killed while it was begun: what that left is taken back when the file is first read, and nothing is in it
            there = there and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0
            if there:
                _check_schema(self._db, self.path)
                if resume:
                    self._compare()
            if not there or not resume:  # at once: a kill leaves a store that can be gone on with, or none
                begin = [f"DELETE FROM {table}" for table in _SCHEMA] if there else list(_SCHEMA.values())
                self._transaction(*((statement, [()]) for statement in begin), ("INSERT INTO run VALUES (?, ?)", [*self._about.items()]))
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"store: {self.path}: not a store of this program, or in use by another scan ({error})") from error
        except BaseException:
            self._db.close()
            raise

    def _compare(self) -> None:
        found = dict(self._db.execute("SELECT key, value FROM run"))
        for key, value in self._about.items():
            if found.get(key) != value:
                what = _difference(key, found.get(key), value)
                raise StoreError(f"store: {self.path} holds a scan {what}; name another file, or begin anew (resume=False, --fresh)")

    def load(self, plans: Sequence[MatrixPlan]) -> dict[str, Pending]:
        """What is there already of these matrices."""
        try:
            rows = {row[0]: row[1:] for row in self._db.execute("SELECT * FROM spectra")}
            return {p.name: _pending(p, rows[p.name][1:]) for p in plans if p.name in rows and rows[p.name][0] == _plan_text(p)}
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise StoreError(f"store: {self.path}: damaged ({str(error)[:300]})") from error

    def keep(self, pending: Iterable[Pending]) -> None:
        """Write matrices that are done; they are in the file when this returns. Those that memory did not suffice for are left to the next attempt."""
        rows = [_row(p) for p in pending if not p.why.startswith(OUT_OF_MEMORY)]
        if rows:  # what an earlier run said of the whole no longer holds
            forget = ("DELETE FROM run WHERE key LIKE 'result.%'", "DELETE FROM matrices", "DELETE FROM skipped")
            self._transaction(*((statement, [()]) for statement in forget), (f"INSERT OR REPLACE INTO spectra VALUES ({', '.join('?' * 13)})", rows))

    def finish(self, spectra: WeightSpectra) -> None:
        """The result in columns, and what ``read_store`` needs beside the spectra."""
        about = {
            "source": spectra.source,
            "status": spectra.status,
            "reason": spectra.reason,
            "backend": spectra.backend,
            "seconds": spectra.seconds,
            "order": [m.name for m in spectra.matrices],
            "tensors": [asdict(t) for t in spectra.tensors],
        }
        shapes = [(s.name, s.reason, None if s.shape is None else json.dumps(s.shape)) for s in spectra.skipped]
        matrices = [_columns(m) for m in spectra.matrices]
        self._transaction(
            ("INSERT OR REPLACE INTO run VALUES (?, ?)", [(f"result.{key}", json.dumps(value)) for key, value in about.items()]),
            ("DELETE FROM matrices", [()]),
            ("DELETE FROM skipped", [()]),
            (f"INSERT INTO matrices VALUES ({', '.join('?' * (13 + len(_METRICS) + len(_RANKS)))})", matrices),
            ("INSERT INTO skipped VALUES (?, ?, ?)", shapes),
        )

    def _transaction(self, *work: tuple[str, list[Any]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for statement, rows in work:
                self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise StoreError(f"store: {self.path}: cannot be written ({error}); what was done before is in it") from error
        except BaseException:  # Ctrl-C in the midst of it
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def __enter__(self) -> ScanStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()


def _difference(key: str, before: str | None, now: str) -> str:
    """Of a store and the scan at hand, in words."""
    try:
        was, wanted = json.loads(before or "{}"), json.loads(now)
    except ValueError:
        was, wanted = {}, {}
    if key == "files" and isinstance(was, dict):
        names = sorted(set(was) | set(wanted))
        if was.keys() != wanted.keys():
            return f"of other files ({', '.join(sorted(was))[:200] or 'none'})"
        return f"of files that have changed since ({', '.join(n for n in names if was[n] != wanted[n])[:200]})"
    if key == "options" and isinstance(was, dict):
        changed = sorted(n for n in set(was) | set(wanted) if was.get(n) != wanted.get(n))
        return "with " + ", ".join(f"{n}={was.get(n)!r:.100} instead of {wanted.get(n)!r:.100}" for n in changed)
    return f"with {key} {(before or 'nothing')[:100]}, this one has {now[:100]}"


def fingerprint(tensors: TensorList) -> dict[str, Any]:
    """Of the files that tensors come from: name beside the checkpoint -> [bytes, time of the last change in ns, SHA-256 of the first and the last MB].

    Raises StoreError for tensors in memory, and where one of the files cannot be read.
    """
    if not tensors.path:
        raise StoreError(f"store: a scan of a {tensors.label} cannot be resumed; wanted a path as source")
    base = tensors.path if os.path.isdir(tensors.path) else os.path.dirname(tensors.path)
    out: dict[str, Any] = {}
    for file in tensors.files:
        try:
            with open(file, "rb") as handle:
                digest = hashlib.sha256(handle.read(_SAMPLE))
                about = os.fstat(handle.fileno())
                if about.st_size > _SAMPLE:
                    handle.seek(max(about.st_size - _SAMPLE, _SAMPLE))
                    digest.update(handle.read(_SAMPLE))
        except OSError as error:
            raise StoreError(f"store: {file}, by which its scan is known again, cannot be read: {error.strerror or error}") from error
        out[os.path.relpath(file, base)] = [about.st_size, about.st_mtime_ns, digest.hexdigest()]
    return out


def read_store(path: str | os.PathLike[str]) -> tuple[list[Pending], list[Skipped], dict[str, Any]]:
    """The matrices in a store, in the order of the result, what was skipped, and what ``ScanStore.finish`` said of the result: fields of WeightSpectra
    (those of an incomplete one where the scan has not ended).

    The file is opened read-only and trusted in nothing: its schema is compared, lengths and numbers are checked. Raises StoreError.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"store: {path}: no such file")
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            _check_schema(db, path)
            run = {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM run")}
            if run.get("format") != FORMAT:
                raise StoreError(f"store: {path} has format {str(run.get('format'))[:40]!r}, known is {FORMAT!r}")
            rows = [(_plan(name, json.loads(text)), rest) for name, text, *rest in db.execute("SELECT * FROM spectra")]
            done = [_pending(plan, rest) for plan, rest in rows]
            if sum(min(p.plan.shape) for p in done if p.s is None) > _MAX_FAILED:
                raise StoreError(f"store: {path}: matrices without values, but of more than {_MAX_FAILED} of them")
            order, fields = _result({key.removeprefix("result."): value for key, value in run.items() if key.startswith("result.")})
            done.sort(key=lambda p: order.get(p.plan.name, len(order)))
            skipped = [_skipped(*row) for row in db.execute("SELECT * FROM skipped")]
        finally:
            db.close()
    except StoreError:
        raise
    except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise StoreError(f"store: {path}: damaged, or not a store of this program ({str(error)[:300]})") from error
    return done, skipped, fields


def _result(found: dict[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """The places of the matrices and the fields of the result. Raises ValueError, TypeError or KeyError for anything else than ``finish`` wrote."""
    if not found:
        return {}, {"status": "incomplete", "reason": "the scan has not ended"}
    texts = {key: found[key] for key in ("source", "status", "reason", "backend")}
    if not _are_texts(*texts.values()) or texts["status"] not in get_args(Status):
        raise ValueError("the result has no status")
    seconds = found["seconds"]
    if type(seconds) not in (int, float) or not 0 <= seconds < 1e12:
        raise ValueError("the result has no seconds")
    for t in found["tensors"]:
        if not _are_texts(t["name"], t["owner"] or "") or not _are_counts(t["shape"]) or not _are_counts([t["module"] or 0]):
            raise ValueError("the result has a tensor without name and shape")
    tensors = tuple(TensorRecord(t["name"], tuple(t["shape"]), t["owner"], t["module"]) for t in found["tensors"])
    return {name: i for i, name in enumerate(found["order"])}, {**texts, "seconds": float(seconds), "tensors": tensors}


def _skipped(name: Any, reason: Any, shape: Any) -> Skipped:
    found = None if shape is None else json.loads(shape)
    if not _are_texts(name, reason) or (found is not None and not _are_counts(found)):
        raise ValueError("a skipped tensor without name, reason and shape")
    return Skipped(name, reason, None if found is None else tuple(found))


def _are_texts(*values: Any) -> bool:
    """Whether all are str that can be written: JSON can hold halves of surrogate pairs."""
    return all(isinstance(v, str) and not any("\ud800" <= c <= "\udfff" for c in v) for v in values)


def _are_counts(values: Any, below: int = 2**63) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < below for n in values)


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    found = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    if found != _SCHEMA:
        raise StoreError(f"store: {path}: other tables than a store has: {', '.join(map(repr, sorted(found)))[:300] or 'none'}")


def _plan_text(p: MatrixPlan) -> str:
    """What of a plan the result depends on, but for its name."""
    return json.dumps([p.kind, p.role, p.shape, p.entry.shape, p.entry.dtype, p.view, repr(p.part), p.in_out, p.tied, p.lora is not None])


def _plan(name: str, found: Any) -> MatrixPlan:
    """A plan with all of the original but the tensor's values."""
    kind, role, shape, tensor_shape, dtype, view, part, in_out, tied, lora = found
    sizes = len(shape) == 2 and len(view) == 3 and _are_counts(shape, _MAX_VALUES) and _are_counts(view, _MAX_VALUES) and _are_counts(tensor_shape)
    if (
        not sizes
        or 0 in shape
        or not isinstance(dtype, str)
        or dtype not in FORMATS
        or not isinstance(tied, list)
        or not _are_texts(name, kind, role, dtype, part, *tied)
    ):
        raise ValueError(f"matrix {name!r} has no shape")
    entry = TensorEntry(name, tuple(tensor_shape), dtype, name, _gone)
    pair = LoraPair(name, "", entry, entry, 1.0, "") if lora else None
    return MatrixPlan(entry, name, kind, (shape[0], shape[1]), (view[0], view[1], view[2]), 0, tuple(tied), role, bool(in_out), pair)


def _gone() -> Any:
    raise ValueError("a store holds no weights")


def _row(p: Pending) -> tuple[Any, ...]:
    s = None if p.s is None else np.ascontiguousarray(p.s, dtype="<f8").tobytes()
    noise = p.noise
    numbers = (noise.tolerance, noise.precision, noise.format, p.zero_rows, p.zero_columns, int(p.redone), p.frobenius, p.backend)
    return (p.plan.name, _plan_text(p.plan), s, p.bound, p.why, *numbers)


def _pending(plan: MatrixPlan, row: Sequence[Any]) -> Pending:
    """Of a row of ``spectra`` after name and plan. Raises ValueError for what no scan writes."""
    s, bound, why, tolerance, precision, noise_format, zero_rows, zero_columns, redone, frobenius, backend = row
    counts = (precision, zero_rows, zero_columns, redone)
    if not _are_texts(why, noise_format, backend) or not _are_counts([*counts], _MAX_VALUES) or not all(_is_size(x) for x in (bound, tolerance, frobenius)):
        raise ValueError(f"matrix {plan.name!r}: a text that is none, or a number that is none or negative")
    values = None
    if s is not None:
        most = min(plan.shape)
        if not isinstance(s, bytes) or len(s) % 8 or len(s) > 8 * most or (len(s) != 8 * most and frobenius is None and plan.lora is None):
            raise ValueError(f"matrix {plan.name!r} of shape {plan.shape}: its singular values are {len(s)} bytes")
        values = np.frombuffer(s, dtype="<f8").astype(np.float64)
        if not values.size or not np.isfinite(values).all() or (values < 0.0).any() or (np.diff(values) > 0.0).any():
            raise ValueError(f"matrix {plan.name!r}: its singular values are not finite, or not in order")
        if bound is None or tolerance is None or (frobenius is not None and not 0.0 < values[0] <= 2.0 * frobenius):
            raise ValueError(f"matrix {plan.name!r}: values without a bound, or larger than their norm")
        # ratios whose squares leave float64 belong to no matrix
        top, floor = float(values[0]), max(bound, tolerance)
        if floor > _FAR * (top or 1.0) or (floor < top / _FAR if frobenius is None else frobenius > _FAR * top):
            raise ValueError(f"matrix {plan.name!r}: values far from their bound or norm")
    nan = float("nan")  # SQLite keeps NaN as NULL
    noise = StorageNoise(nan if tolerance is None else float(tolerance), precision, noise_format)
    pending = Pending(plan, noise, values, why, nan if bound is None else float(bound))
    pending.zero_rows, pending.zero_columns, pending.redone, pending.backend = zero_rows, zero_columns, bool(redone), backend
    pending.frobenius = None if frobenius is None else float(frobenius)
    return pending


def _is_size(x: Any) -> bool:
    """Whether ``x`` is NULL, or a number >= 0 that is finite."""
    return x is None or (type(x) in (int, float) and 0.0 <= x < math.inf)


def _columns(m: MatrixSpectrum) -> tuple[Any, ...]:
    def number(x: Any) -> float | None:
        return None if x is None or math.isnan(x) else float(x)

    fit = m.power_law
    return (
        *(m.name, m.status, m.reason, m.kind, m.role, *m.shape, m.dtype),
        *(number(m.metrics.get(name)) for name in _METRICS),
        *(m.ranks.get(rule) for rule in RULES),
        *(number(fit.alpha), number(fit.stderr), fit.n_tail, number(m.storage_noise), number(m.bound)),
    )
