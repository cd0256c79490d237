"""Which edge sends a message to which, ordered so that both directions are reduced over contiguous segments, without atomics.

Example:
    >>> triplets = TripletIndex.from_triplets(torch.tensor([1, 2, 0]), torch.tensor([0, 0, 2]), num_edges=3)
    >>> triplets.out_ptr.tolist()
    [0, 2, 2, 3]
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..graph import segments

#: Triplets as the operators take them: plain tensors, in the order of `TripletIndex.tensors`.
TRIPLET_SCHEMA = "Tensor edge_in, Tensor edge_out, Tensor out_ptr, Tensor out_order, Tensor in_ptr, Tensor in_order"

TripletTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class TripletIndex:
    """Triplets input edge → output edge, indexed by either.

    Triplet tensors stay in the caller's order. ``out_order[out_ptr[e]:out_ptr[e + 1]]`` are the triplets that end in output edge e,
    ``in_order[in_ptr[e]:in_ptr[e + 1]]`` those that leave input edge e, both in ascending triplet number (stable, hence reproducible).
    The two kinds of edges may be of different graphs, as in GemNet-OC's mixed interactions, and quadruplets are indexed alike.
    """

    edge_in: Tensor  #: [n_triplets] int64
    edge_out: Tensor  #: [n_triplets] int64
    out_ptr: Tensor  #: [n_out + 1] int64, CSR over edge_out
    out_order: Tensor  #: [n_triplets] int64, sorted position → the caller's triplet
    in_ptr: Tensor  #: [n_in + 1] int64, CSR over edge_in
    in_order: Tensor  #: [n_triplets] int64

    @classmethod
    def from_triplets(cls, edge_in: Tensor, edge_out: Tensor, num_edges: int, *, num_in: int | None = None) -> TripletIndex:
        """Sort once per batch; every layer, and teacher and student alike, reuse the result.

        Args:
            edge_in: input edge of each triplet, [n_triplets] int64, each in [0, num_in).
            edge_out: output edge of each triplet, [n_triplets] int64, each in [0, num_edges).
            num_edges: number of output edges, and of input edges if these are the same; edges without triplets are allowed.
            num_in: number of input edges, if they are others.

        Raises:
            ValueError: if the two differ in shape or device, or are not one-dimensional int64; on a CPU also if an index is out of range.
        """
        if edge_in.shape != edge_out.shape or edge_in.dim() != 1 or edge_in.dtype != torch.int64 or edge_out.dtype != torch.int64:
            raise ValueError(
                f"edge_in and edge_out must both be [n_triplets] int64, got {tuple(edge_in.shape)} {edge_in.dtype} "
                f"and {tuple(edge_out.shape)} {edge_out.dtype}"
            )
        if edge_in.device != edge_out.device:
            raise ValueError(f"edge_in is on {edge_in.device}, edge_out on {edge_out.device}")
        out_ptr, out_order = segments(edge_out, num_edges)
        in_ptr, in_order = segments(edge_in, num_edges if num_in is None else num_in)
        return cls(edge_in.contiguous(), edge_out.contiguous(), out_ptr, out_order, in_ptr, in_order)

    @property
    def num_in(self) -> int:
        return self.in_ptr.shape[0] - 1

    @property
    def num_out(self) -> int:
        return self.out_ptr.shape[0] - 1

    @property
    def num_triplets(self) -> int:
        return self.edge_in.shape[0]

    @property
    def tensors(self) -> TripletTensors:
        """Arguments of the operators, see `TRIPLET_SCHEMA`."""
        return self.edge_in, self.edge_out, self.out_ptr, self.out_order, self.in_ptr, self.in_order

    @property
    def transpose(self) -> TripletIndex:
        """The same triplets with the roles of input and output edges exchanged; nothing is copied or sorted."""
        return TripletIndex(self.edge_out, self.edge_in, self.in_ptr, self.in_order, self.out_ptr, self.out_order)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TripletIndex:
        """The same triplets on another device."""
        return TripletIndex(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))
