"""Fused, deterministic, twice-differentiable kernels for molecular graph networks and their distillation."""

from .cfconv.op import cfconv, edge_product
from .cfconv.paired import pair_product, paired_cfconv
from .cfconv.pairs import PairIndex
from .edge_to_node.op import edge_to_node, edge_to_node_both, edge_to_node_vector
from .graph import CSRGraph
from .painn_message.op import painn_message
from .projected_loss.op import projected_loss
from .segment_reduce.op import scatter_reduce, segment_reduce
from .vector_loss.op import vector_loss

__all__ = [
    "CSRGraph",
    "PairIndex",
    "cfconv",
    "edge_product",
    "edge_to_node",
    "edge_to_node_both",
    "edge_to_node_vector",
    "painn_message",
    "pair_product",
    "paired_cfconv",
    "projected_loss",
    "scatter_reduce",
    "segment_reduce",
    "vector_loss",
]
__version__ = "0.1.0"
