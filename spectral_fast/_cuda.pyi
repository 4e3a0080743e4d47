MOST_EIGENVALUES: int
MOST_JACOBI_ROWS: int
SWEEP_BLOCKS: int

def most_swept_rows(device: int) -> int: ...
def most_band_rows(width: int, device: int) -> int: ...
def device_count() -> tuple[int, str]: ...
def symmetric_eigenvalues(*, a: int, batch: int, n: int, values: int, device: int, stream: int) -> None: ...
def band_eigenvalues(*, band: int, batch: int, n: int, width: int, work: int, values: int, device: int, stream: int) -> None: ...
def jacobi_rows(*, x: int, batch: int, r: int, n: int, u: int, done: int, device: int, stream: int) -> None: ...
def gram_schmidt_sweep(
    *,
    v: int,
    v_dtype: str,
    ld: int,
    t: int,
    w: int,
    w_dtype: str,
    n: int,
    minus: int,
    sums: int,
    work: int,
    dots: bool,
    device: int,
    stream: int,
) -> None: ...
def power_law(*, values: int, offsets: int, total: int, n_spectra: int, alpha: int, D: int, best: int, work: int, device: int, stream: int) -> None: ...
