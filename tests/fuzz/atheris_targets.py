"""A target of the coverage-guided fuzzer atheris (https://github.com/google/atheris) for every hand-read format, and for the stores of scans.

    pip install atheris
    python tests/fuzz/atheris_targets.py FORMAT [options of libFuzzer] [folders with a corpus of your own]

FORMAT is one of fuzz.corpus.TARGETS ("safetensors", "torch-pickle", "gguf", ...) or "store". The valid files of the corpus are written to a temporary
folder, from which the fuzzer begins; what it finds is written to the current directory (-artifact_prefix=), and run again by giving the file's name.
An input that ends neither in a checkpoint nor in CheckpointError stops it; so do 2 s (-timeout) and 1 GB for the whole process, the fuzzer's own
tables and torch among it (-rss_limit_mb).
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import atheris

    with atheris.instrument_imports(include=["spectral_fast.checkpoints", "spectral_fast.weights.store", "zipfile", "pickletools"]):
        import spectral_fast.checkpoints
        import spectral_fast.weights.store  # noqa: F401

from fuzz import stores
from fuzz.checks import check_checkpoint
from fuzz.corpus import TARGETS, target

__all__ = ["FORMATS", "one_input"]

FORMATS = (*TARGETS, "store")


def one_input(name: str, folder: Path) -> Callable[[bytes], bool]:
    """The function that takes an input of the fuzzer: whether it is a valid file. ``folder`` is written to. Raises what the reader should not."""
    if name == "store":

        def one(data: bytes) -> bool:
            (folder / "store").write_bytes(data)
            return stores.check_store(folder / "store")

        return one
    which = target(name)

    def one_file(data: bytes) -> bool:
        path = which.write(folder, data)
        return check_checkpoint(path, which.magnified * sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()))

    return one_file


def seeds(name: str, folder: Path) -> tuple[bytes, ...]:
    """Valid inputs. ``folder`` may be written to."""
    return (stores.valid_store(folder).read_bytes(),) if name == "store" else target(name).seeds


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[1] not in FORMATS:
        raise SystemExit(f"usage: {arguments[0]} FORMAT [options of libFuzzer] [corpus]\nFORMAT: one of {', '.join(FORMATS)}")
    name, options = arguments[1], arguments[2:]
    warnings.simplefilter("ignore")  # pickletools and ast on strange escapes
    with tempfile.TemporaryDirectory() as scratch:
        folder, corpus = Path(scratch, "file"), Path(scratch, "corpus")
        folder.mkdir()
        corpus.mkdir()
        for i, seed in enumerate(seeds(name, Path(scratch))):
            (corpus / str(i)).write_bytes(seed)
        one = one_input(name, folder)
        defaults = ["-timeout=2", "-rss_limit_mb=1024", "-max_len=65536"]
        files = any(Path(o).is_file() for o in options)  # inputs to be run once
        atheris.Setup([arguments[0], *defaults, *options, *([] if files else [str(corpus)])], lambda data: one(data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
