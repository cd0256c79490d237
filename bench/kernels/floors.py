"""The least bytes each op must move: every input and output once, however often a kernel reads them.

Formulas per derivative; N nodes, E edges, F features, s bytes a number. Indices count 4 bytes, the least that addresses a node, and
pointers 4·N, although ours are int64: a floor is what nobody can go below. A mode costs the sum of its parts:

    forward           value
    force             value + gradient by every input
    force_training    value + gradient + gradient of ⟨tangent, gradient⟩ by every input and by the cotangent

An op that is not in the table is given `each_tensor_once`, which asks the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Size:
    """What a floor depends on."""

    nodes: int
    edges: int
    width: int
    itemsize: int


Parts = tuple[int, int, int]  #: bytes of the value, the gradient and the gradient of the gradient


def _cfconv(z: Size) -> Parts:
    # value: x, w → y; gradient: x, w, g → gx, gw; its gradient: x, w, g, u, V → rx, rw, rg
    node, edge, index = z.nodes * z.width * z.itemsize, z.edges * z.width * z.itemsize, 4 * z.edges
    return (
        edge + 2 * node + index + 4 * z.nodes,
        2 * edge + 3 * node + 2 * index + 4 * z.nodes,
        3 * edge + 5 * node + 2 * index + 4 * z.nodes,
    )


def _edge_product(z: Size) -> Parts:
    # value: a, b → e; gradient: a, b, g → ga, gb; its gradient: a, b, g, ta, tb → ra, rb, rg
    node, edge, index = z.nodes * z.width * z.itemsize, z.edges * z.width * z.itemsize, 8 * z.edges
    return edge + 2 * node + index, edge + 4 * node + index, 2 * edge + 6 * node + index


def _paired(z: Size) -> Parts:
    # as cfconv with half as many rows of filter, and the pair of each edge
    node, pair, index = z.nodes * z.width * z.itemsize, z.edges // 2 * z.width * z.itemsize, 8 * z.edges
    return pair + 2 * node + index + 4 * z.nodes, 2 * pair + 3 * node + index + 4 * z.nodes, 3 * pair + 5 * node + index + 4 * z.nodes


def _pair_product(z: Size) -> Parts:
    return _edge_product(Size(z.nodes, z.edges // 2, z.width, z.itemsize))


def _painn_message(z: Size) -> Parts:
    # phi 3F, vector 3F, out 4F per node; filter 3F, direction 3 per edge
    node, edge, index = z.nodes * z.width * z.itemsize, z.edges * (3 * z.width + 3) * z.itemsize, 4 * z.edges
    return (
        edge + 10 * node + index + 4 * z.nodes,
        2 * edge + 16 * node + 2 * index + 4 * z.nodes,
        3 * edge + 26 * node + 2 * index + 4 * z.nodes,
    )


def _edge_to_node(z: Size) -> Parts:
    # linear: its derivatives need nothing but what they transport
    node, edge = z.nodes * z.width * z.itemsize, z.edges * z.width * z.itemsize
    return edge + node + 4 * z.nodes, edge + node + 4 * z.nodes, edge + node + 4 * z.nodes


def _edge_to_node_both(z: Size, per_node: int = 4) -> Parts:
    # value: m, r → 4 per node; gradient: m, r, g → gm, gr; its gradient: m, r, g, tm, tr → rm, rr, rg
    node, edge = per_node * z.nodes * z.width * z.itemsize, z.edges * (z.width + 3) * z.itemsize
    return edge + node + 4 * z.nodes, 2 * edge + node + 4 * z.nodes, 3 * edge + 2 * node + 4 * z.nodes


def _edge_to_node_vector(z: Size) -> Parts:
    return _edge_to_node_both(z, per_node=3)


def _projected_loss(z: Size, rows: int = 1, wider: int | None = None) -> Parts:
    # x, target, weight → loss; a frozen target has no gradient
    out = 2 * z.width + 1 if wider is None else z.width + wider
    x, target, weight = (count * z.itemsize for count in (rows * z.nodes * z.width, rows * z.nodes * out, out * z.width))
    return x + target + weight, 2 * x + target + 2 * weight, 3 * x + target + 3 * weight


def _vector_loss(z: Size) -> Parts:
    return _projected_loss(z, rows=3, wider=2)


def _linear_cka(z: Size) -> Parts:
    both = 2 * z.nodes * z.width * z.itemsize
    return both, 2 * both, 3 * both


def _cfconv_radial(z: Size) -> Parts:
    # x, length → y; the filter network is small. Edges carry their length, its cotangent and its tangent, and no features
    node, edge = z.nodes * z.width * z.itemsize, z.edges * (z.itemsize + 4)
    return edge + 2 * node + 4 * z.nodes, 2 * edge + 3 * node + 4 * z.nodes, 3 * edge + 5 * node + 4 * z.nodes


def _painn_message_radial(z: Size) -> Parts:
    node, edge = z.nodes * z.width * z.itemsize, z.edges * (3 * z.itemsize + 4)
    return edge + 10 * node + 4 * z.nodes, 2 * edge + 16 * node + 4 * z.nodes, 3 * edge + 26 * node + 4 * z.nodes


FLOORS: dict[str, Callable[[Size], Parts]] = {
    "cfconv": _cfconv,
    "edge_product": _edge_product,
    "paired_cfconv": _paired,
    "pair_product": _pair_product,
    "painn_message": _painn_message,
    "edge_to_node": _edge_to_node,
    "edge_to_node_vector": _edge_to_node_vector,
    "edge_to_node_both": _edge_to_node_both,
    "segment_reduce[sum]": _edge_to_node,
    "segment_reduce[mean]": _edge_to_node,
    "scatter_reduce[sum]": _edge_to_node,
    "scatter_reduce[mean]": _edge_to_node,
    "projected_loss[mse]": _projected_loss,
    "projected_loss[mae]": _projected_loss,
    "projected_loss[huber]": _projected_loss,
    "vector_loss[mse]": _vector_loss,
    "linear_cka": _linear_cka,
    "radial_conv": _cfconv_radial,
    "cfconv_exact": _cfconv_radial,
    "painn_radial": _painn_message_radial,
}


def each_tensor_once(inputs: Sequence[Tensor], outputs: Sequence[Tensor], edges: int) -> Parts:
    """Bytes of the inputs and outputs of each derivative, for an op that declares no formula."""
    x, y = (sum(tensor.numel() * tensor.element_size() for tensor in tensors) for tensors in (inputs, outputs))
    return x + y + 4 * edges, 2 * x + y + 8 * edges, 3 * x + 2 * y + 8 * edges


def floor_bytes(name: str, size: Size, mode: str, inputs: Sequence[Tensor] = (), outputs: Sequence[Tensor] = ()) -> int:
    """Bytes of an op in a mode."""
    declared = FLOORS.get(name)
    parts = declared(size) if declared else each_tensor_once(inputs, outputs, size.edges)
    return sum(parts[: {"forward": 1, "force": 2, "force_training": 3}[mode]])
