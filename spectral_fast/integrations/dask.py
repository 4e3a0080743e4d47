"""Dask as the executor of a scan: ``scan(path, executor=...)`` with the workers of a cluster, or with processes of this machine."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from urllib.parse import urlsplit

__all__ = ["dask_executor"]

_RETRIES = 2  # of a unit whose worker died


@contextmanager
def dask_executor(address: str, *, insecure: bool = False) -> Iterator[Executor]:
    """An executor of the cluster whose scheduler is at ``address`` ("tls://host:8786"), or of "local:N": N worker processes on this machine, which share
    its cores and end with the context. A unit whose worker dies is given to another one, twice at most.

    A Dask scheduler runs what anybody who reaches it sends: an address on another machine without TLS is refused unless ``insecure`` is set. Threads of
    the workers' kernels: OMP_NUM_THREADS, which Dask sets to 1 where nothing else is said. Workers started here are not ended for the memory they take:
    that is bounded by ``scan(max_memory=...)``, for each of them.
    Raises ImportError without dask.distributed, ValueError for an address that is none or is refused, OSError where nobody answers.
    """
    workers = re.fullmatch(r"local:([1-9][0-9]{0,3})", address)
    if workers is None:
        _check_address(address, insecure)
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("dask: not installed: pip install 'dask[distributed]'") from error
    if workers is None:
        with Client(address, set_as_default=False) as client:
            yield client.get_executor(pure=False, retries=_RETRIES)
        return
    count = int(workers.group(1))
    threads = max(1, len(os.sched_getaffinity(0)) // count) if hasattr(os, "sched_getaffinity") else 1
    with (
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=None,
            env={"OMP_NUM_THREADS": str(threads)},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client.get_executor(pure=False, retries=_RETRIES)


def _check_address(address: str, insecure: bool) -> None:
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("tcp", "tls"):
        raise ValueError(f"dask: got {address!r}; wanted local:N, tls://host:port or tcp://host:port")
    if parts.scheme == "tls" or insecure:
        return
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if not here:
        raise ValueError(f"dask: {address} is on another machine and not protected by TLS; use tls://, or allow it expressly (insecure=True, --dask-insecure)")
