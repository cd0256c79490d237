"""Tables of radial filters: made from a network at the knots, measured between them, and refined when they are not good enough.

A filter network runs at some hundred knots instead of at every edge. It runs in float64 there, so that what a float32 model loses against
the network itself is one rounding of the coefficients. Gradients reach the network's weights through the table.

Example:
    >>> builder = TableBuilder(BasisSpec("gaussian", 50, 5.0), EnvelopeSpec("cosine", 5.0))
    >>> grid = builder.grid([network], torch.float32)
    >>> table = builder.build([network], grid, torch.float32)[0]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..radial_specs import (
    LOG_2,
    ActivationKind,
    BasisSpec,
    EnvelopeSpec,
    FilterLinear,
    FilterMLP,
    activation_jets,
    basis_jets,
    envelope_jets,
    filter_jets,
)
from .reference import filters, place
from .remembered import remembered
from .spline import ROWS, SplineGrid, prefilter

Network = FilterMLP | FilterLinear

#: Numbers of knots that are tried, in this order.
LADDER = (97, 129, 161, 193, 257, 321, 385, 513, 641, 769, 1025)
#: Largest error of value and slope that a table may have, relative root mean squares over all distances. In float32 it is what evaluating a
#: filter network itself in float32 costs (3e-7 and 6e-7 for SchNet's), times two; in float64 what the ladder's end can reach; in half
#: precision a tenth of what rounding the coefficients costs.
LIMITS: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-11, 1e-9),
    torch.float32: (3e-7, 1.5e-6),
    torch.float16: (3e-5, 3e-4),
    torch.bfloat16: (1e-4, 1e-3),
}
#: No two atoms come nearer than this part of the cutoff; the ends of a spline are its worst places.
NEAREST = 0.1
#: A new measurement is made when the estimate has grown by this factor since the last one.
REMEASURE = 2.0
#: Every so many builds an estimate is made, and read so many builds later, when a GPU has long made it: nothing waits, and the build at which
#: a grid changes does not depend on the clock.
ESTIMATE_EVERY, READ_AFTER = 8, 4


@remembered(maxsize=64)
def _basis_at(basis: BasisSpec, envelope: EnvelopeSpec, grid: SplineGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Basis [knots, K] and envelope [knots, 1] at the knots, float64; the envelope continued beyond the cutoff does not enter."""
    at = grid.positions(device=device)
    return basis_jets(basis, at, 0)[0], envelope_jets(envelope, at, 0, extend=True)[0].unsqueeze(-1)


@remembered(maxsize=64)
def _linear_rows(basis: BasisSpec, envelope: EnvelopeSpec, grid: SplineGrid, smooth_bias: bool, device: torch.device) -> Tensor:
    """Coefficients of every basis function and of the bias's factor, [rows, K + 1]: a linear filter's table is one product with them."""
    value, cut = _basis_at(basis, envelope, grid, device)
    return prefilter(grid.knots, torch.float64, device) @ torch.cat([value * cut, cut if smooth_bias else torch.ones_like(cut)], 1)


class _LinearTables(torch.autograd.Function):
    """Tables of several linear filters of one width at once; differentiable once, and rounded as `_MLPTables` are."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.rows, ctx.low, ctx.width = rows, weights[0].dtype, weights[0].shape[0]
        joined = torch.cat([torch.cat(weights[0::2]), torch.cat(weights[1::2]).unsqueeze(1)], 1)
        tables = (rows @ joined.double().T).to(dtype)
        return tuple(table.contiguous() for table in torch.split(tables, ctx.width, 1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        joined = (torch.cat(grads, 1).double().T @ ctx.rows).to(ctx.low)
        parts = torch.split(joined, ctx.width)
        return None, None, *(t for part in parts for t in (part[:, :-1], part[:, -1]))


class _MLPTables(torch.autograd.Function):
    """Tables of several two-layer networks of one width at once; differentiable once.

    Forward in float64, because a table's slope magnifies the noise of its values; backward in the dtype of the weights, whose gradients
    need no more than that.
    """

    @staticmethod
    def forward(ctx: Any, builder: _Rows, kind: ActivationKind, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        first, bias, second, last = (weights[number::4] for number in range(4))
        # the first layers of all networks are one product, and so is the step from values to coefficients
        z = torch.addmm(torch.cat(bias).double(), builder.basis, torch.cat(first).double().T)
        low = first[0].dtype
        hidden, slope = activation_with_slope(kind, z, low)
        hidden.mul_(builder.cut)
        parts = torch.split(builder.solve @ hidden, [w.shape[0] for w in first], 1)
        smooth = builder.solve @ builder.cut
        ctx.save_for_backward(slope.mul_(builder.cut), hidden.to(low), *second)
        ctx.builder, ctx.widths = builder, [w.shape[0] for w in first]
        return tuple(torch.addmm(smooth * b.double(), part, w.double().T).to(dtype) for part, w, b in zip(parts, second, last, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        slope, hidden, *second = ctx.saved_tensors
        low, builder = slope.dtype, ctx.builder
        # to gradients by the values at the knots; this map magnifies noise, so its sums are float64
        joined = builder.solve.T @ torch.cat(grads, 1).double()
        values = torch.split(joined.to(low), [g.shape[1] for g in grads], 1)
        g_z = torch.cat([g @ w for g, w in zip(values, second, strict=True)], 1).mul_(slope)
        g_second = [g.T @ part for g, part in zip(values, torch.split(hidden, ctx.widths, 1), strict=True)]
        g_last = [(g.T @ builder.cut.to(low)).squeeze(1) for g in values]
        g_first = torch.split(g_z.T @ builder.basis.to(low), ctx.widths)
        g_bias = torch.split(g_z.sum(0), ctx.widths)
        return None, None, None, *(g for four in zip(g_first, g_bias, g_second, g_last, strict=True) for g in four)


def activation_with_slope(kind: ActivationKind, z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The activation in the dtype of z and its slope in ``dtype``, as fast as torch can make them."""
    if kind != "shifted_softplus":
        value, slope = activation_jets(kind, z, 1)
        return value, slope.to(dtype)
    return torch.nn.functional.softplus(z, threshold=40).sub_(LOG_2), torch.sigmoid(z.to(dtype))


class _Rows(NamedTuple):
    """What every table on a grid is made of, float64."""

    basis: Tensor  #: [knots, K]
    cut: Tensor  #: [knots, 1]
    solve: Tensor  #: [rows, knots]


def knot_values(basis: BasisSpec, network: Network, envelope: EnvelopeSpec, grid: SplineGrid) -> Tensor:
    """The filter at the knots, [knots, F] float64, differentiable in the network's tensors."""
    weight = network[0]
    assert isinstance(weight, Tensor)
    value, cut = _basis_at(basis, envelope, grid, weight.device)
    if isinstance(network, FilterLinear):
        return (value * cut) @ network.weight.double().T + (cut if network.smooth_bias else 1) * network.bias.double()
    hidden = torch.addmm(network.bias1.double(), value, network.weight1.double().T)
    hidden = activation_jets(network.activation, hidden, 0)[0] * cut
    return hidden @ network.weight2.double().T + cut * network.bias2.double()


def tabulate(basis: BasisSpec, network: Network, envelope: EnvelopeSpec, grid: SplineGrid, dtype: torch.dtype | None = None) -> Tensor:
    """Coefficients of the filter's spline, [grid.rows, F].

    Args:
        basis: radial basis.
        network: filter network, or one linear layer.
        envelope: cutoff.
        grid: knots, up to the envelope's cutoff.
        dtype: of the table; that of the network if None. The network runs in float64 in any case.

    Raises:
        ValueError: if the cutoffs differ.
    """
    if not grid.cutoff == envelope.cutoff == basis.cutoff:
        raise ValueError(f"cutoffs differ: basis {basis.cutoff}, envelope {envelope.cutoff} and grid {grid.cutoff} Å")
    weight = network[0]
    assert isinstance(weight, Tensor)
    wanted = dtype or weight.dtype
    if isinstance(network, FilterLinear):
        rows = _linear_rows(basis, envelope, grid, network.smooth_bias, weight.device)
        table = rows @ torch.cat([network.weight, network.bias.unsqueeze(-1)], 1).double().T
    else:
        table = grid.coefficients(knot_values(basis, network, envelope, grid))
    return table.to(wanted)


@torch.no_grad()
def measure(basis: BasisSpec, network: Network, envelope: EnvelopeSpec, grid: SplineGrid) -> tuple[Tensor, Tensor]:
    """Error of value and slope half way between the knots, where it is largest: the network itself is called there.

    Returns:
        Two scalars: ‖error‖ / ‖filter‖ of the value, and the same of the slope.
    """
    weight = network[0]
    assert isinstance(weight, Tensor)
    exact: Network
    if isinstance(network, FilterMLP):
        first, bias, second, last = (t.detach().double() for t in network[:4])
        exact = FilterMLP(first, bias, second, last, network.activation)
    else:
        exact = network._replace(weight=network.weight.detach().double(), bias=network.bias.detach().double())
    table = tabulate(basis, exact, envelope, grid)
    # not exactly in the middle, where the error of the slope vanishes
    at = grid.positions(device=weight.device)[:-1] + grid.step * 0.35
    at = at[at > NEAREST * grid.cutoff]
    want = filter_jets(basis, exact, envelope, at, 1)
    knot, fraction, _ = place(at, grid.step, grid.knots)
    tiny = torch.finfo(torch.float64).tiny
    value, slope = (
        (filters(at, table, knot, fraction, grid.step, order) - want[order]).norm() / want[order].norm().clamp_min(tiny)
        for order in range(2)
    )
    return value, slope


class TableBuilder:
    """Keeps the grid on which the filters of one model are tabulated well enough.

    The grid is chosen by measurement (`measure`) at the first build. Some later builds are estimated by their `roughness`, and when that has
    doubled since the last measurement, the networks are measured again and the grid refined.
    """

    def __init__(self, basis: BasisSpec, envelope: EnvelopeSpec) -> None:
        self.basis, self.envelope = basis, envelope
        self._grids: dict[torch.dtype, SplineGrid | None]
        self._estimates: dict[torch.dtype, float]
        self._builds: int
        self._pending: tuple[torch.dtype, Tensor, torch.cuda.Event | None] | None
        self.reset()

    def grid(self, networks: Sequence[Network], dtype: torch.dtype) -> SplineGrid | None:
        """The grid for tables of this dtype; None if no grid is good enough, and the exact operator must do the work."""
        if self._pending is not None and self._builds % ESTIMATE_EVERY >= READ_AFTER:
            found, estimate = self._read()
            if estimate > REMEASURE * self._estimates.get(found, float("inf")):
                self._grids.pop(found, None)
        if dtype not in LIMITS:
            return None
        if dtype not in self._grids:
            self._grids[dtype] = self._choose(networks, dtype)
        return self._grids[dtype]

    def build(self, networks: Sequence[Network], grid: SplineGrid, dtype: torch.dtype) -> list[Tensor]:
        """One table per network, [grid.rows, F], differentiable once in the networks' tensors."""
        tables = self._mlps(networks, grid, dtype) if isinstance(networks[0], FilterMLP) else self._linears(networks, grid, dtype)
        if self._builds % ESTIMATE_EVERY == 0:
            self._estimate(torch.cat([table.detach() for table in tables], 1), dtype)
        self._builds += 1
        return tables

    def fits(self, tables: Sequence[Tensor], dtype: torch.dtype) -> bool:
        """Whether tables made just now are as smooth as their grid was chosen for; if not, the next `grid` is another. Waits for a GPU.

        For weights that may have changed all at once and whose tables will be kept: no later build would find out.
        """
        if not float(roughness(torch.cat(list(tables), 1))) > REMEASURE * self._estimates.get(dtype, float("inf")):
            return True
        self._grids.pop(dtype, None)
        return False

    def reset(self) -> None:
        """Forget the grids: the weights have become others."""
        self._grids, self._estimates, self._builds, self._pending = {}, {}, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Numbers and text from which `load_state_dict` goes on exactly: which grids, and what is watched."""
        pending = None
        if self._pending is not None:
            dtype, estimate = self._read()
            pending = [_name(dtype), estimate]
            self._pending = (dtype, torch.tensor([estimate], dtype=torch.float64), None)
        grids = {_name(dtype): None if grid is None else grid.knots for dtype, grid in self._grids.items()}
        estimates = {_name(dtype): estimate for dtype, estimate in self._estimates.items()}
        return {"grids": grids, "estimates": estimates, "builds": self._builds, "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a builder for the same basis and envelope."""
        cutoff = self.envelope.cutoff
        self._grids = {_dtype(name): None if knots is None else SplineGrid(cutoff, int(knots)) for name, knots in state["grids"].items()}
        self._estimates = {_dtype(name): float(estimate) for name, estimate in state["estimates"].items()}
        self._builds, self._pending = int(state["builds"]), None
        if state["pending"] is not None:
            name, estimate = state["pending"]
            self._pending = (_dtype(name), torch.tensor([estimate], dtype=torch.float64), None)

    def __getstate__(self) -> dict[str, Any]:
        # an event of a GPU can be neither copied nor pickled
        plain = TableBuilder(self.basis, self.envelope)
        plain.load_state_dict(self.state_dict())
        return dict(plain.__dict__)

    def _mlps(self, networks: Sequence[Network], grid: SplineGrid, dtype: torch.dtype) -> list[Tensor]:
        weight = networks[0][0]
        assert isinstance(weight, Tensor)
        rows = _Rows(*_basis_at(self.basis, self.envelope, grid, weight.device), prefilter(grid.knots, torch.float64, weight.device))
        return list(_MLPTables.apply(rows, networks[0][4], dtype, *(t for network in networks for t in network[:4])))  # type: ignore[misc, no-untyped-call]

    def _linears(self, networks: Sequence[Network], grid: SplineGrid, dtype: torch.dtype) -> list[Tensor]:
        first = networks[0]
        assert isinstance(first, FilterLinear)
        rows = _linear_rows(self.basis, self.envelope, grid, first.smooth_bias, first.weight.device)
        return list(_LinearTables.apply(rows, dtype, *(t for network in networks for t in network[:2])))  # type: ignore[no-untyped-call]

    def _choose(self, networks: Sequence[Network], dtype: torch.dtype) -> SplineGrid | None:
        value_limit, slope_limit = LIMITS[dtype]
        for knots in LADDER:
            grid = SplineGrid(self.envelope.cutoff, knots)
            errors = [measure(self.basis, network, self.envelope, grid) for network in networks]
            if all(bool(value <= value_limit) and bool(slope <= slope_limit) for value, slope in errors):
                table = torch.cat([tabulate(self.basis, network, self.envelope, grid).detach() for network in networks], 1)
                self._estimates[dtype] = float(roughness(table))
                return grid
        return None

    def _estimate(self, table: Tensor, dtype: torch.dtype) -> None:
        found, event = roughness(table).reshape(1), None
        if found.device.type == "cuda":
            host = torch.empty(1, dtype=torch.float64, pin_memory=True)
            host.copy_(found, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            found = host
        self._pending = (dtype, found, event)

    def _read(self) -> tuple[torch.dtype, float]:
        assert self._pending is not None
        (dtype, found, event), self._pending = self._pending, None
        if event is not None:
            event.synchronize()
        return dtype, float(found)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def roughness(table: Tensor) -> Tensor:
    """Largest eighth difference of a table's coefficients over their root mean square; the error of interpolation is proportional to it.

    The largest, because a kink is in one place. Rounding adds 1e-5 in float32, to what is 1e-2 where it begins to matter.
    """
    difference = table
    for _ in range(ROWS):
        difference = difference[1:] - difference[:-1]
    size = table.square().mean().sqrt().clamp_min(torch.finfo(table.dtype).tiny)
    return (difference.abs().amax() / size).double()
