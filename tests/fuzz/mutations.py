"""Mutations of valid files: of their fields and of their bytes. A mutation is decided by a seed alone, so that a failure can be had again."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

__all__ = ["PICKLED", "TEXTS", "mutate_bytes", "mutate_fields"]

_NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 99, 127, 128, 255, 256, 512, 1023, 4096),
    *(2**15, 2**16 - 1, 2**16, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**48, 2**61 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1),
)

# pieces of JSON and of Python's literals
TEXTS: tuple[bytes, ...] = tuple(
    text.encode("utf-8", "surrogatepass")
    for text in (
        *map(str, (*_NUMBERS[:20], -1, -(2**63), 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 10**30)),
        "9" * 5000,
        *("1.0", "-0.0", "1e300", "1e999", "NaN", "Infinity", "-Infinity", "true", "false", "null", "True", "False", "None", "0x10", "1_0", "1j", "1L"),
        *("[]", "{}", "()", "[[]]", '{"a":', "[" * 300, "[" * 5000, "(" * 150 + ")" * 150, "{" * 60, "[1,2,3,4,5,6,7,8,9]", "(1,)", "," * 50, ":", "-" * 3000),
        *('""', '"a"', "'a'", '"__metadata__"', '"dtype"', '"shape"', '"data_offsets"', '"weight_map"', '"F64"', '"BF16"', '"F4"', '"U8"', '"BOOL"'),
        *("'descr'", "'<f8'", "'>f2'", "'|O'", "'<U1'", "'<M8[s]'", "'|b1'", "'|V8'", "'<c16'", "'f4'", "''", "'<'", "'fortran_order'", "'shape'"),
        *('"\\ud800"', '"\\u0000"', '"\\x"', '"' + "x" * 5000 + '"', '"../x"', '"/etc/passwd"', '"."', '".."', '"a/b"', '"b.safetensors"', '"index.json"'),
        *("\ud800", "\0", "é", "𝒳", "\\", '"', "'", "b'a'", "lambda: 0", "f'{1}'", "1if 1else " * 40 + "1", "1+1j", "1+" * 900 + "1", ".a" * 900, "x" * 70_000),
    )
)


def _text(raw: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(raw)) + raw


# operations of pickles: values, classes and what is done with them
PICKLED: tuple[bytes, ...] = (
    *(b"N", b"\x88", b"\x89", b"]", b"}", b")", b"\x8f", b"(", b"0", b"1", b"2", b".", b"t", b"l", b"d", b"e", b"u", b"a", b"s", b"\x90", b"\x91", b"\x94"),
    *(b"R", b"\x81", b"\x92", b"b", b"o", b"Q", b"\x85", b"\x86", b"\x87", b"\x93", b"\x97", b"\x98", b"\x82\x01", b"\x80\x05", b"\x95" + b"\xff" * 8),
    *(b"K\x00", b"K\x01", b"K\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x09" + bytes(8) + b"\x01"),
    *(
        b"\x8a\xff" + b"\x7f" * 255,
        b"\x8b" + struct.pack("<I", 5000) + b"\x01" * 5000,
        b"I01\n",
        b"I-5\n",
        b"L99999999999999999999L\n",
        b"L" + b"9" * 5000 + b"L\n",
    ),
    *(
        b"F1.5\n",
        b"Fnan\n",
        b"G\x7f\xf0" + bytes(6),
        b"G\x7f\xf8" + bytes(6),
        b"S'a'\n",
        b"S'\\x'\n",
        b"Va\\ud800\n",
        b"C\x01a",
        b"\x96" + struct.pack("<Q", 1) + b"a",
    ),
    *(_text(t) for t in (b"", b"a", b"0", b"1", b"storage", b"cpu", b"state", b"param_groups", b"../x", b"__0_0.distcp", b"\xed\xa0\x80", b"x" * 70_000)),
    *(_text(t) for t in (b"offsets", b"sizes", b"chunks", b"properties", b"size", b"fqn", b"offset", b"index", b"relative_path", b"length", b"storage_data")),
    *(b"h" + bytes([i]) for i in range(40)),
    *(b"q\x00", b"q\x05", b"r\xff\xff\xff\xff", b"p1\n", b"p99999999999999999999\n", b"g1\n", b"j\x01\x00\x00\x00", b"P0\n"),
    *(
        b"c" + b"\n".join(name.rpartition(b".")[::2]) + b"\n"
        for name in (
            *(b"torch.FloatStorage", b"torch.DoubleStorage", b"torch.BFloat16Storage", b"torch.QInt8Storage", b"torch.storage.UntypedStorage", b"torch.Size"),
            *(
                b"torch._utils._rebuild_tensor_v2",
                b"torch._utils._rebuild_tensor_v3",
                b"torch._utils._rebuild_sparse_tensor",
                b"torch._utils._rebuild_parameter",
            ),
            *(
                b"torch._tensor._rebuild_from_type_v2",
                b"torch.jit._pickle.restore_type_tag",
                b"torch.jit._pickle.build_intlist",
                b"__torch__.Net",
                b"os.system",
            ),
            *(b"torch.float32", b"torch.bfloat16", b"torch.strided", b"torch.Tensor", b"collections.OrderedDict", b"builtins.dict", b"builtins.set"),
            *(b"torch.distributed.checkpoint.metadata." + n for n in (b"Metadata", b"TensorStorageMetadata", b"MetadataIndex", b"BytesStorageMetadata")),
        )
    ),
)


def mutate_fields(rng: random.Random, fields: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """A few fields replaced, deleted, repeated or exchanged. values: what fields of this format may be replaced by; none: other bytes of their width."""
    parts = list(fields)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 4))):
        if not parts:
            break
        at = rng.randrange(len(parts))
        action = rng.random()
        if action < 0.6:
            parts[at] = _replacement(rng, parts[at], values)
        elif action < 0.7:
            parts[at] = rng.choice(parts)
        elif action < 0.77:
            del parts[at : at + rng.choice((1, 1, 1, 2, 5, 20))]
        elif action < 0.84:
            run = parts[at : at + rng.choice((1, 2, 3, 8, 40))]
            parts[at:at] = run * rng.choice((1, 1, 2, 5, 50))
        elif action < 0.9:
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif action < 0.97:
            parts.insert(at, rng.choice(values) if values else _other(rng, parts[at]))
        else:
            parts[at] = parts[at] * rng.choice((2, 10, 300))
        if sum(map(len, parts)) > 1_000_000:
            break
    return b"".join(parts)


def _replacement(rng: random.Random, piece: bytes, values: Sequence[bytes]) -> bytes:
    """Half of the time a value of the same kind, so that the whole has a chance to be understood."""
    if not values or rng.random() < 0.15:
        return _other(rng, piece)
    alike = [v for v in values if _kind(v) == _kind(piece)] if rng.random() < 0.6 else []
    return rng.choice(alike or values)


def _kind(piece: bytes) -> str:
    """A number, a text, or what its first byte says: an operation of a pickle, a sign."""
    first = piece[:1]
    return "number" if first.isdigit() or first == b"-" else "text" if first in (b'"', b"'") else first.hex()


def _other(rng: random.Random, piece: bytes) -> bytes:
    """Other bytes of the same width: a strange number, one near by, or a few changed ones."""
    width = len(piece)
    if width in (1, 2, 4, 8):
        order = "little" if rng.random() < 0.9 else "big"
        value = int.from_bytes(piece, "little")
        near = (value + 1, value - 1, 2 * value, value // 2, value ^ (1 << rng.randrange(8 * width)), value << 8)
        return (rng.choice(near if rng.random() < 0.3 else _NUMBERS) % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
    if piece[:1].isdigit() and not piece.strip(b"01234567 \0") and rng.random() < 0.7:  # a tar's octal number
        return b"%0*o\0" % (max(width - 1, 1), rng.choice(_NUMBERS) % 8 ** max(width - 1, 1))
    return mutate_bytes(rng, piece) if piece else b"\0"


def mutate_bytes(rng: random.Random, whole: bytes) -> bytes:
    """A few bytes replaced, inserted, deleted or repeated, or the end cut off."""
    raw = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        at = rng.randint(0, len(raw))
        action = rng.randrange(11)
        some = rng.randbytes(rng.randint(1, 4))
        if action < 2:
            raw[at : at + len(some)] = some
        elif action < 4 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif action < 6:
            width = rng.choice((1, 2, 4, 8))
            raw[at : at + width] = (rng.choice(_NUMBERS) % 256**width).to_bytes(width, "little")
        elif action == 6:
            raw[at:at] = some
        elif action == 7:
            del raw[at : at + rng.randint(1, 16)]
        elif action == 8:
            raw[at:at] = raw[at : at + rng.randint(1, 64)]
        elif action == 9:
            other = rng.randint(0, len(raw))
            raw[at : at + 8] = raw[other : other + 8]
        elif rng.randrange(4) == 0:
            del raw[at:]
    return bytes(raw)
