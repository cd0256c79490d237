"""How the checks call the filtered sum over triplets on random input. Its Triton kernels are those of `triplet_reduce`, specialised there."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import AotKernel, OpCase, Sample, Shape, random_tensor
from ..triplet_reduce.triplets import TripletIndex
from . import reference
from .op import triplet_filter


def _reference(edge: Tensor, radial: Tensor, weight: Tensor, angular: Tensor, triplets: TripletIndex) -> Tensor:
    return reference.triplet_filter(edge, radial, weight, angular, reference.plain_sums(*triplets.tensors))


def _sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    # more input edges than output edges; the last two of three or more take part in nothing; neither number is a power of two
    num_out, num_in, degrees, rank = shape.nodes, shape.nodes + 1, 7, 5
    edge_out = torch.randint(max(1, num_out - 2), (shape.edges,), generator=generator)
    edge_in = torch.randint(max(1, num_in - 2), (shape.edges,), generator=generator)
    edge = random_tensor(num_in, shape.width, dtype=dtype, generator=generator)
    radial = random_tensor(num_in, degrees, rank, dtype=torch.float64, generator=generator).mul(rank**-0.5).to(dtype)
    weight = random_tensor(rank, shape.width, dtype=dtype, generator=generator)
    angular = random_tensor(shape.edges, degrees, dtype=torch.float64, generator=generator).mul(degrees**-0.5).to(dtype)
    return Sample((edge, radial, weight, angular), (TripletIndex.from_triplets(edge_in, edge_out, num_out, num_in=num_in),))


_OPERATORS = ("triplet_filter", "triplet_filter_gradients", "triplet_filter_second")

CASES = (OpCase("triplet_filter", triplet_filter, _reference, _sample, _OPERATORS),)
KERNELS: tuple[AotKernel, ...] = ()
