"""Recurrent layers written out: the same numbers as torch's fused functions, as calls of linear, one per time step and weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CELLS", "LAYERS", "unrolled", "unrolled_cell"]

# torch's fused function -> its kind; the layers take (input, state, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)
LAYERS: dict[Callable[..., Any], str] = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "tanh", torch.rnn_relu: "relu"}
# the single cells take (input, state, w_ih, w_hh, b_ih, b_hh)
CELLS: dict[Callable[..., Any], str] = {torch.lstm_cell: "lstm", torch.gru_cell: "gru", torch.rnn_tanh_cell: "tanh", torch.rnn_relu_cell: "relu"}

State = tuple[Tensor, ...]


def _step(kind: str, x: Tensor, h: Tensor, state: State) -> State:
    """One time step from the two projections (with their biases). state: (h,) or (h, c)."""
    if kind == "tanh":
        return (torch.tanh(x + h),)
    if kind == "relu":
        return (torch.relu(x + h),)
    if kind == "gru":
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        new = torch.tanh(xn + r * hn)
        return (new + z * (state[0] - new),)
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return (torch.sigmoid(o) * torch.tanh(c), c)


def _direction(kind: str, x: Tensor, state: State, w: Sequence[Tensor], has_biases: bool, reverse: bool) -> tuple[Tensor, State]:
    """x: (T, n, d). Returns (T, n, h) and the last state."""
    b_ih, b_hh = (w[2], w[3]) if has_biases else (None, None)
    w_hr = w[-1] if len(w) in (3, 5) else None  # LSTM with projections
    inputs = F.linear(x, w[0], b_ih).unbind(0)
    outputs: list[Tensor] = []
    for projected in reversed(inputs) if reverse else inputs:
        state = _step(kind, projected, F.linear(state[0], w[1], b_hh), state)
        if w_hr is not None:
            state = (F.linear(state[0], w_hr), state[1])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def unrolled(kind: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What torch's fused function returns for these arguments. Raises NotImplementedError for packed sequences and dropout between layers."""
    if kwargs or len(args) != 9 or not isinstance(args[2], (list, tuple)):
        raise NotImplementedError("packed sequences are not written out")
    x, hx, weights, has_biases, layers, dropout, train, both, batch_first = args
    if train and dropout > 0:
        raise NotImplementedError("dropout between layers is not written out")
    first: State = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    x = x.transpose(0, 1) if batch_first else x
    directions = 2 if both else 1
    per = len(weights) // (layers * directions)
    last: list[State] = []
    for layer in range(layers):
        outputs = []
        for d in range(directions):
            k = layer * directions + d
            y, state = _direction(kind, x, tuple(s[k] for s in first), weights[k * per : (k + 1) * per], bool(has_biases), d == 1)
            outputs.append(y)
            last.append(state)
        x = torch.cat(outputs, -1) if both else outputs[0]
    states = tuple(torch.stack(s) for s in zip(*last, strict=True))
    return (x.transpose(0, 1) if batch_first else x, *states)


def unrolled_cell(kind: str, x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None) -> Any:
    """What torch's single recurrent cell returns."""
    state: State = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    state = _step(kind, F.linear(x, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
    return state if kind == "lstm" else state[0]
