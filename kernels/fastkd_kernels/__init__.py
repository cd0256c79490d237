"""Fused, deterministic, twice-differentiable kernels for molecular graph networks and their distillation."""

from .cfconv.op import cfconv, edge_product
from .cfconv.paired import pair_product, paired_cfconv
from .cfconv.pairs import PairIndex
from .cfconv_exact.op import cfconv_exact
from .edge_to_node.op import edge_to_node, edge_to_node_both, edge_to_node_vector
from .edge_to_node_loss.op import edge_to_node_loss, edge_to_node_vector_loss
from .gated_edge_to_node.op import gated_edge_to_node
from .global_structure_loss.op import global_structure_loss
from .graph import CSRGraph
from .linear_cka.op import linear_cka
from .local_structure_loss.op import edge_distance, local_structure_loss
from .painn_exact.op import painn_message_exact
from .painn_message.op import painn_message
from .painn_radial.op import painn_radial
from .painn_radial.radial import painn_message_radial
from .painn_update.op import painn_context, painn_update
from .projected_loss.op import projected_loss
from .radial_basis.op import radial_basis, radial_envelope, radial_parameters
from .radial_conv.op import radial_conv
from .radial_conv.places import RadialIndex
from .radial_conv.radial import cfconv_radial
from .radial_conv.spline import SplineGrid
from .radial_conv.tables import TableBuilder, tabulate
from .radial_specs import BasisSpec, EnvelopeSpec, FilterLinear, FilterMLP
from .segment_reduce.op import scatter_reduce, segment_reduce
from .segment_softmax.op import scatter_log_softmax, scatter_softmax, segment_log_softmax, segment_softmax
from .triplet_filter.op import triplet_filter
from .triplet_reduce.op import triplet_contract, triplet_reduce
from .triplet_reduce.triplets import TripletIndex
from .vector_geometric_loss.op import vector_geometric_loss
from .vector_loss.op import vector_loss

__all__ = [
    "BasisSpec",
    "CSRGraph",
    "EnvelopeSpec",
    "FilterLinear",
    "FilterMLP",
    "PairIndex",
    "RadialIndex",
    "SplineGrid",
    "TableBuilder",
    "TripletIndex",
    "cfconv",
    "cfconv_exact",
    "cfconv_radial",
    "edge_distance",
    "edge_product",
    "edge_to_node",
    "edge_to_node_both",
    "edge_to_node_loss",
    "edge_to_node_vector",
    "edge_to_node_vector_loss",
    "gated_edge_to_node",
    "global_structure_loss",
    "linear_cka",
    "local_structure_loss",
    "painn_context",
    "painn_message",
    "painn_message_exact",
    "painn_message_radial",
    "painn_radial",
    "painn_update",
    "pair_product",
    "paired_cfconv",
    "projected_loss",
    "radial_basis",
    "radial_conv",
    "radial_envelope",
    "radial_parameters",
    "scatter_log_softmax",
    "scatter_reduce",
    "scatter_softmax",
    "segment_log_softmax",
    "segment_reduce",
    "segment_softmax",
    "tabulate",
    "triplet_contract",
    "triplet_filter",
    "triplet_reduce",
    "vector_geometric_loss",
    "vector_loss",
]
__version__ = "0.1.0"
