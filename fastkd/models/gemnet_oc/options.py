"""Everything that determines a GemNet-OC but its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..base import MAX_ATOMIC_NUMBER, ForceMode

RadialKind = Literal["gaussian", "bessel"]
EnvelopeName = Literal["polynomial", "exponential"]
AngularKind = Literal["legendre_outer", "spherical_harmonics", "smooth_harmonics"]

#: Elements that OCP's tables of embeddings hold: hydrogen to bismuth.
OCP_ELEMENTS = 83


@dataclass(frozen=True)
class GemNetOCOptions:
    """Options of GemNet-OC; the defaults are the released base model of OC20.

    Cutoffs that are None are those of the main graph (for ``atom_cutoff`` the largest of all). Limits on neighbours keep the nearest
    of each atom; 0 keeps all. They make the energy jump where two neighbours change places, as in the reference: see `smooth`.
    """

    width: int = 256  #: features per atom
    edge_width: int = 512  #: features per edge
    layers: int = 4  #: interaction blocks
    radial: int = 128  #: radial basis functions
    spherical: int = 7  #: degrees of the angular bases
    triplet_in: int = 64  #: channels before the bilinear layer of triplets
    triplet_out: int = 64  #: and after it
    quad_in: int = 32  #: the same of quadruplets
    quad_out: int = 32
    pair_in: int = 64  #: the same of pairs of atoms
    pair_out: int = 64
    radial_width: int = 16  #: channels of the projected radial bases
    circular_width: int = 16  #: channels of the projected bases of one angle
    spherical_width: int = 32  #: channels of the projected basis of two angles
    before_skip: int = 2  #: residual layers of an edge before the skip connection
    after_skip: int = 2  #: and after it
    concat: int = 1  #: residual layers after atoms have been mixed into edges
    atom_update: int = 3  #: residual layers of the atom update and of the output blocks
    after_atom: int = 3  #: residual layers of an output block after the atom embedding was added; 0 leaves that step out
    atom_layers: int = 2  #: residual layers of atoms before their update
    global_layers: int = 2  #: residual layers after all output blocks
    forces: ForceMode = "direct"
    coupled_forces: bool = False  #: both directions of an edge get the same direct force, so that the net force is zero
    readout: Literal["sum", "mean"] = "sum"  #: of atomic energies
    cutoff: float = 12.0  #: Å, of the main graph, whose edges have embeddings
    quad_cutoff: float | None = None  #: Å, of the middle edge of quadruplets
    atom_edge_cutoff: float | None = None  #: Å, of atom-to-edge and edge-to-atom interactions
    atom_cutoff: float | None = None  #: Å, of atom-to-atom interactions
    neighbors: int = 30
    quad_neighbors: int = 8
    atom_edge_neighbors: int = 20
    atom_neighbors: int = 1000
    strict_neighbors: bool = True  #: exactly so many, even where the last ones are equally far away
    quadruplets: bool = True
    atom_edge: bool = True  #: atom-to-edge interaction
    edge_atom: bool = True  #: edge-to-atom interaction
    atom_atom: bool = True  #: atom-to-atom interaction
    quad_tags: tuple[int, ...] = (0, 1, 2)  #: quadruplets need an atom with one of these tags at an end of their middle edge
    basis: RadialKind = "gaussian"
    angle_basis: RadialKind | None = None  #: radial basis beside angles; None: the same as ``basis``
    envelope: EnvelopeName = "polynomial"
    envelope_exponent: int = 5
    angular: AngularKind = "legendre_outer"  #: basis of the two angles of a quadruplet; only the last is smooth everywhere
    output_init: Literal["he_orthogonal", "zeros"] = "he_orthogonal"  #: of the last layers
    elements: int = OCP_ELEMENTS  #: hydrogen up to this atomic number

    def __post_init__(self) -> None:
        # JSON has lists only
        object.__setattr__(self, "quad_tags", tuple(int(tag) for tag in self.quad_tags))
        if self.layers < 1:
            raise ValueError(f"GemNet-OC needs at least one block, got layers={self.layers}")
        if not 1 <= self.elements <= MAX_ATOMIC_NUMBER:
            raise ValueError(f"elements must lie between 1 and {MAX_ATOMIC_NUMBER}, got {self.elements}")
        for name in ("cutoff", "quad_reach", "atom_edge_reach"):
            if getattr(self, name) > self.reach:
                raise ValueError(
                    f"no cutoff may exceed that of atom-to-atom interactions, {self.reach} Å, got {name}={getattr(self, name)}"
                )
        if not self.has_atom_graph and self.quadruplets and self.quad_reach > self.cutoff:
            raise ValueError(f"without atom interactions quad_cutoff may not exceed cutoff={self.cutoff}, got {self.quad_reach}")

    @property
    def has_atom_graph(self) -> bool:
        """Whether an interaction starts or ends at atoms, so that graphs are cut from the largest."""
        return self.atom_atom or self.has_mixed_graph

    @property
    def has_mixed_graph(self) -> bool:
        return self.atom_edge or self.edge_atom

    @property
    def two_angle_size(self) -> int:
        """Entries of the basis of two angles."""
        return self.spherical * (self.spherical + 1) // 2 if self.angular == "smooth_harmonics" else self.spherical**2

    @property
    def quad_reach(self) -> float:
        """Å."""
        return self.cutoff if self.quad_cutoff is None or not self.quadruplets else self.quad_cutoff

    @property
    def atom_edge_reach(self) -> float:
        """Å."""
        return self.cutoff if self.atom_edge_cutoff is None or not self.has_mixed_graph else self.atom_edge_cutoff

    @property
    def reach(self) -> float:
        """Å, the largest cutoff: that of the batch's graph."""
        if self.atom_cutoff is None or not self.atom_atom:
            return max(self.cutoff, self.quad_reach, self.atom_edge_reach)
        return self.atom_cutoff

    @classmethod
    def base(cls) -> GemNetOCOptions:
        """GemNet-OC of OC20 (gemnet_oc_base_s2ef): 38,864,384 parameters."""
        return cls(quad_tags=(1, 2))

    @classmethod
    def small(cls) -> GemNetOCOptions:
        """The small student of OC20: 8,753,408 parameters."""
        return replace(cls.base(), layers=3, width=128, edge_width=256)

    @classmethod
    def coll(cls) -> GemNetOCOptions:
        """GemNet-OC for molecules in collision (COLL): 11,197,184 parameters."""
        return replace(cls.base(), width=128, edge_width=256)

    def smooth(self) -> GemNetOCOptions:
        """The same without jumps of the energy: no limits on neighbours, and a basis of two angles that is smooth everywhere."""
        return replace(self, neighbors=0, quad_neighbors=0, atom_edge_neighbors=0, atom_neighbors=0, angular="smooth_harmonics")
