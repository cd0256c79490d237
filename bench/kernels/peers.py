"""Other libraries that compute one of our ops. Each is imported where it is used; a peer that is missing is a reason, not an error.

A peer is a function from a `Problem` to a function of its inputs. Adding one is one decorated function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bench.kernels.cases import Problem

Peer = Callable[["Problem"], Callable[..., Any]]
PEERS: dict[tuple[str, str], Peer] = {}


class UnavailableError(Exception):
    """Why a provider cannot run here."""


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def peer(provider: str, *ops: str) -> Callable[[Peer], Peer]:
    """Register a provider for ops."""

    def register(make: Peer) -> Peer:
        PEERS.update({(op, provider): make for op in ops})
        return make

    return register


def need(module: str, attribute: str = "") -> Any:
    """A module, or something in it.

    Raises:
        UnavailableError: if it is not installed, cannot be imported, or does not have the attribute.
    """
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None and f"{module}.".startswith(f"{error.name}.")
        raise UnavailableError(f"{module} is not installed" if missing else f"{module} cannot be imported: {error}") from None
    if attribute and not hasattr(found, attribute):
        raise UnavailableError(f"{module} has no {attribute}")
    return getattr(found, attribute) if attribute else found


@peer("torch_scatter", "cfconv")
def _torch_scatter_cfconv(problem: Problem) -> Callable[..., Any]:
    scatter, graph = need("torch_scatter", "scatter"), problem.extra[0]
    return lambda x, weight: scatter(weight * x[graph.edge_src], graph.edge_dst, 0, dim_size=graph.num_nodes, reduce="sum")


@peer("torch_scatter", "edge_to_node")
def _torch_scatter_edges(problem: Problem) -> Callable[..., Any]:
    scatter, graph = need("torch_scatter", "scatter"), problem.extra[0]
    return lambda edge: scatter(edge, graph.edge_dst, 0, dim_size=graph.num_nodes, reduce="sum")


@peer("torch_scatter", "edge_to_node_both")
def _torch_scatter_both(problem: Problem) -> Callable[..., Any]:
    scatter, graph = need("torch_scatter", "scatter"), problem.extra[0]

    def both(edge: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        outer = direction[:, :, None] * edge[:, None]
        return tuple(scatter(values, graph.edge_dst, 0, dim_size=graph.num_nodes, reduce="sum") for values in (edge, outer))

    return both


@peer("torch_scatter", "scatter_reduce[sum]")
def _torch_scatter_reduce(problem: Problem) -> Callable[..., Any]:
    scatter, (index, count) = need("torch_scatter", "scatter"), problem.extra
    return lambda values: scatter(values, index, 0, dim_size=count, reduce="sum")


@peer("torch_scatter", "segment_reduce[sum]", "segment_reduce[max]")
def _torch_scatter_segments(problem: Problem) -> Callable[..., Any]:
    segment_csr, ptr = need("torch_scatter", "segment_csr"), problem.extra[0]
    reduce = problem.op.name[len("segment_reduce[") : -1]
    return lambda values: segment_csr(values, ptr, reduce=reduce)


@peer("pyg_lib", "segment_reduce[sum]", "segment_reduce[max]")
def _pyg_lib_segments(problem: Problem) -> Callable[..., Any]:
    segment_csr, ptr = need("pyg_lib.ops", "segment_csr"), problem.extra[0]
    reduce = problem.op.name[len("segment_reduce[") : -1]
    return lambda values: segment_csr(values, ptr, reduce=reduce)


@peer("torch", "segment_reduce[sum]")
def _torch_segments(problem: Problem) -> Callable[..., Any]:
    ptr = problem.extra[0]
    return lambda values: torch.segment_reduce(values, "sum", offsets=ptr, axis=0, initial=0)


@peer("pyg", "cfconv")
def _pyg_cfconv(problem: Problem) -> Callable[..., Any]:
    """PyG SchNet's own convolution, without the linear layers around it."""
    module, graph = need("torch_geometric.nn.models.schnet", "CFConv"), problem.extra[0]
    conv, edge_index = module(1, 1, 1, torch.nn.Identity(), 1.0), torch.stack([graph.edge_src, graph.edge_dst])
    return lambda x, weight: conv.propagate(edge_index, x=x, W=weight)


@peer("pyg", "edge_to_node")
def _pyg_edges(problem: Problem) -> Callable[..., Any]:
    scatter, graph = need("torch_geometric.utils", "scatter"), problem.extra[0]
    return lambda edge: scatter(edge, graph.edge_dst, 0, dim_size=graph.num_nodes, reduce="sum")


@peer("pyg", "scatter_reduce[sum]")
def _pyg_scatter(problem: Problem) -> Callable[..., Any]:
    scatter, (index, count) = need("torch_geometric.utils", "scatter"), problem.extra
    return lambda values: scatter(values, index, 0, dim_size=count, reduce="sum")


@peer("cuequivariance", "cfconv")
def _cuequivariance_cfconv(problem: Problem) -> Callable[..., Any]:
    """The polynomial "u,u,u" with gather and scatter inside (``uniform_1d``)."""
    cue, cuet, graph = need("cuequivariance"), need("cuequivariance_torch"), problem.extra[0]
    need("cuequivariance_ops_torch")
    width = problem.shape.size.width
    product = cue.SegmentedTensorProduct.from_subscripts("u,u,u")
    for operand in range(3):
        product.add_segment(operand, (width,))
    product.add_path(0, 0, 0, c=1.0)
    polynomial = cue.SegmentedPolynomial.eval_last_operand(product)
    module = cuet.SegmentedPolynomial(polynomial, method="uniform_1d", math_dtype=problem.inputs[0].dtype).to(problem.inputs[0].device)
    nodes = torch.empty(graph.num_nodes, width, device=problem.inputs[0].device)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        found = module([weight, x], input_indices={1: graph.edge_src}, output_shapes={0: nodes}, output_indices={0: graph.edge_dst})
        return found[0]

    return convolve


@peer("flashmd", "cfconv")
def _flashmd_cfconv(problem: Problem) -> Callable[..., Any]:
    """FlashSchNet's convolution over sorted segments. Its cutoff is 1 at distance 0, which leaves the filter as it is."""
    # another project has this name on PyPI, without kernels
    convolve, graph = need("flashmd.kernels", "fused_csr_cfconv_autograd"), problem.extra[0]
    distance = torch.zeros(graph.num_edges, device=graph.edge_src.device)
    rest = (graph.edge_src, graph.edge_dst, graph.edge_ptr, graph.edge_order, graph.num_nodes, 1.0, graph.src_ptr, graph.src_order)
    return lambda x, weight: convolve(x, weight, distance, *rest)


@peer("gram", "linear_cka")
def _gram_cka(problem: Problem) -> Callable[..., Any]:
    """CKA as it is commonly written: two N × N Gram matrices, centred by N × N products."""
    nodes = problem.inputs[0].shape[0]
    options = {"dtype": problem.inputs[0].dtype, "device": problem.inputs[0].device}
    centre = torch.eye(nodes, **options) - torch.full((nodes, nodes), 1 / nodes, **options)

    def cka(x: Tensor, y: Tensor) -> Tensor:
        one, two = (centre @ (z @ z.T) @ centre for z in (x, y))
        return (one * two).sum() / (one.norm() * two.norm())

    return cka
