"""Reads a pickle stream as data. Nothing is imported, called or built: a class or function is only a name (Global), its use
only a record (Call). So no allow-list is needed to be safe, and an unknown class costs its own entry, not the file.

The opcodes are decoded by the standard library's ``pickletools.genops``; what they do is described in that module's docstrings.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["MAX_BYTES", "MAX_STEPS", "Call", "Global", "PickleError", "PickleStream", "read_pickle"]

# Bounds time and memory of a hostile stream: one step takes a microsecond or three, the largest object it can make has about 100 bytes.
# A tensor of a state dict takes about 30 steps, an Adam entry about 70: files with so many tensors that they need more steps than any file
# is given are large.
FREE_STEPS = 300_000
BYTES_PER_STEP = 100  # of the file, for each step beyond those
MAX_STEPS = 5_000_000
STEPS_PER_ENTRY = 10  # of what is listed; an entry that is a tensor met before takes one step
MAX_BYTES = 256 * 2**20
MAX_LINE = 2**16

_DICTS = {("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "Counter"), ("builtins", "dict"), ("__builtin__", "dict")}
_LISTS = {(module, name) for module in ("builtins", "__builtin__") for name in ("list", "tuple", "set", "frozenset")} | {("torch", "Size")}

_CONSTANTS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)


class PickleError(ValueError):
    """The stream is not a pickle that can be read as data."""


@dataclass(frozen=True)
class Global:
    """A class or function named in the stream; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Call:
    """``what(*args)`` as recorded in the stream, with the state, items and elements set on it afterwards."""

    what: Any
    args: tuple[Any, ...]
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


class PickleStream:
    """A pickle that gives no more bytes than it has and no more than MAX_BYTES: a declared length of 2**60 must not be allocated.

    size: bytes that ``handle`` has; file_size: of the whole file the pickle belongs to. steps: allowed; entries: that its value may have.
    """

    def __init__(self, handle: BinaryIO, size: int, file_size: int) -> None:
        self._handle = handle
        self._size = size
        self.steps = min(FREE_STEPS + file_size // BYTES_PER_STEP, MAX_STEPS)
        self.entries = self.steps // STEPS_PER_ENTRY
        self._taken = 0
        self.tell = handle.tell

    def read(self, count: int) -> bytes:
        self._taken += count
        if count < 0 or count > self._size - self.tell():
            raise PickleError(f"a value of {count} bytes is declared at byte {self.tell()} of {self._size}")
        if self._taken > MAX_BYTES:
            raise PickleError(f"more than {MAX_BYTES} bytes outside of tensors")
        return self._handle.read(count)

    def readline(self) -> bytes:
        return self._handle.readline(MAX_LINE)


def read_pickle(stream: PickleStream, persistent: Callable[[Any], Any]) -> Any:
    """The value of one pickle, leaving ``stream`` behind its STOP.

    persistent: turns a persistent id (torch: the tuple that describes a storage) into a value.
    Plain values become themselves, sets become lists, OrderedDict and its kin dicts, everything else :class:`Call`.
    The value may contain itself and share parts, as pickles may. Raises PickleError.
    """
    machine = _Machine(persistent, stream.steps)
    try:
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, Warning) as error:
        # genops raises ValueError for truncated and unknown opcodes (and, where warnings are errors, one about escapes in text);
        # an empty stack or a missing memo entry give the others
        raise PickleError(f"damaged pickle stream ({type(error).__name__}: {error})") from error


class _Machine:
    """The pickle stack machine over inert values."""

    def __init__(self, persistent: Callable[[Any], Any], steps: int) -> None:
        self.stack: list[Any] = []
        self._persistent = persistent
        self._allowed = steps
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def step(self, name: str, argument: Any) -> None:
        self._spend(1)
        if name in _CONSTANTS:
            self.stack.append(argument)
            return
        operation = _OPERATIONS.get(name)
        if operation is None:
            raise PickleError(f"opcode {name} is not read")
        operation(self, argument)

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > self._allowed:
            raise PickleError(f"more than {self._allowed} steps")

    def _pop_mark(self) -> list[Any]:
        begin = self._marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def _pop(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self.stack):
            self._marks.pop()
        else:
            self.stack.pop()

    def _drop_to_mark(self, _: Any) -> None:
        self._pop_mark()

    def _ignore(self, _: Any) -> None:
        return None

    def _push_new(self, make: Callable[[], Any]) -> None:
        self.stack.append(make())

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def _tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise PickleError("stack is empty")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def _put(self, index: Any) -> None:
        if not 0 <= index < 2**32:  # what the binary form can hold; larger integers can be chosen so that all fall on one hash
            raise PickleError("a memo index of more than 32 bits")
        self._memo[index] = self.stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _get(self, index: Any) -> None:
        self.stack.append(self._memo[index])

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Global(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str) or any("\ud800" <= c <= "\udfff" for c in module + name):
            raise PickleError("the name of a class has to be text")
        self.stack.append(Global(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple):
            raise PickleError("a call's arguments have to be a tuple")
        self.stack.append(self._call(what, arguments))

    def _newobj_ex(self, _: Any) -> None:
        keywords = self.stack.pop()
        self._reduce(None)
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = keywords

    def _inst(self, argument: str) -> None:
        items = tuple(self._pop_mark())
        self._global(argument)
        self.stack.append(self._call(self.stack.pop(), items))

    def _obj(self, _: Any) -> None:
        what, *items = self._pop_mark()
        self.stack.append(self._call(what, tuple(items)))

    def _call(self, what: Any, arguments: tuple[Any, ...]) -> Any:
        kind = (what.module, what.name) if isinstance(what, Global) else None
        if kind in _DICTS:
            made: dict[Any, Any] = {}
            for argument in arguments:
                pairs = list(argument.items()) if isinstance(argument, dict) else argument
                if isinstance(pairs, list):
                    self._spend(len(pairs))  # a shared list may be copied again and again
                    for pair in pairs:
                        if not isinstance(pair, list | tuple) or len(pair) != 2:
                            raise PickleError("a dict is made from pairs")
                        _set(made, pair[0], pair[1])
            return made
        if kind in _LISTS:
            items = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()
            self._spend(len(items))
            return tuple(items) if kind == ("torch", "Size") else list(items)
        return Call(what, arguments)

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Call):  # a dict's attributes (a state dict's _metadata) are not needed
            self.stack[-1].state = state

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target = target.elements
        if not isinstance(target, list):
            raise PickleError(f"cannot append to {type(target).__name__}")
        target.extend(items)

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _assign(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target = target.entries
        if not isinstance(target, dict):
            raise PickleError(f"cannot set items of {type(target).__name__}")
        if len(items) % 2:
            raise PickleError("a key without a value")
        for i in range(0, len(items), 2):
            _set(target, items[i], items[i + 1])

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._assign([key, value])

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._assign(items)

    def _persid(self, argument: Any) -> None:
        self.stack.append(self._persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self._persistent(self.stack.pop()))


def _set(target: dict[Any, Any], key: Any, value: Any) -> None:
    # Only flat keys are hashed: hashing a tuple nested a million deep would overflow the C stack. Nor long integers: the multiples of 2**61 - 1
    # have one hash, and a dict of them takes a time that grows with the square of their number.
    flat = isinstance(key, str | bytes | float | None | Call) or (isinstance(key, int) and key.bit_length() <= 64)
    if not flat:  # a Call is hashed by identity
        key = f"<{type(key).__name__} {len(target)}>"
    target[key] = value


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._ignore,
    "FRAME": _Machine._ignore,
    "STOP": _Machine._ignore,
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_LIST": lambda m, _: m._push_new(list),
    "EMPTY_SET": lambda m, _: m._push_new(list),
    "EMPTY_DICT": lambda m, _: m._push_new(dict),
    "EMPTY_TUPLE": lambda m, _: m._push_new(tuple),
    "LIST": lambda m, _: m.stack.append(m._pop_mark()),
    "FROZENSET": lambda m, _: m.stack.append(m._pop_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m._pop_mark())),
    "TUPLE1": lambda m, _: m._tuple_of(1),
    "TUPLE2": lambda m, _: m._tuple_of(2),
    "TUPLE3": lambda m, _: m._tuple_of(3),
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": lambda m, _: m._extend(m._pop_mark()),
    "ADDITEMS": lambda m, _: m._extend(m._pop_mark()),
    "SETITEM": _Machine._setitem,
    "SETITEMS": lambda m, _: m._assign(m._pop_mark()),
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._drop_to_mark,
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "NEWOBJ_EX": _Machine._newobj_ex,
    "INST": _Machine._inst,
    "OBJ": _Machine._obj,
    "BUILD": _Machine._build,
    "PERSID": _Machine._persid,
    "BINPERSID": _Machine._binpersid,
}
