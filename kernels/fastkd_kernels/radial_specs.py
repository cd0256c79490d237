"""What a radial filter is made of: basis, network and cutoff as plain values, and their derivatives in the distance.

A filter is W(d) = C(d) · M(φ(d)) with radial basis φ [K], a small network M and a cutoff envelope C. The operators that take
distances instead of filters need W and its derivatives, so everything here comes as *jets*: (value, first derivative, …, up to the
third). All functions are plain torch, on any device and dtype, and differentiable again by autograd.

Example:
    >>> basis, envelope = BasisSpec("gaussian", 50, cutoff=5.0), EnvelopeSpec("cosine", cutoff=5.0)
    >>> value, slope = basis_jets(basis, torch.tensor([1.0, 2.0]), order=1)
    >>> value.shape
    torch.Size([2, 50])
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BasisKind = Literal["gaussian", "bessel", "exp_normal"]
EnvelopeKind = Literal["cosine", "polynomial", "exponential", "none"]
ActivationKind = Literal["shifted_softplus", "silu", "tanh"]

#: The position in each tuple is the kernels' code.
BASES: tuple[BasisKind, ...] = ("gaussian", "bessel", "exp_normal")
ENVELOPES: tuple[EnvelopeKind, ...] = ("cosine", "polynomial", "exponential", "none")
ACTIVATIONS: tuple[ActivationKind, ...] = ("shifted_softplus", "silu", "tanh")

#: Highest order of derivative of the jets.
MAX_ORDER = 3

LOG_2 = math.log(2.0)
#: exp(1 − 1/(1 − x²)) and all its derivatives are 0 in float64 where 1/(1 − x²) is larger.
EXPONENTIAL_LIMIT = 600.0
#: sin(z)/z and its derivatives are summed as a power series below, where their closed forms cancel.
SERIES_BELOW = 1.0
#: Terms of that series: 1/23! at z = 1 is far below float64's rounding.
SERIES_TERMS = 11

Jets = tuple[Tensor, ...]


@dataclass(frozen=True)
class BasisSpec:
    """``size`` functions of a distance in [0, cutoff] Å, without an envelope; a value, so that it can be a key.

    - ``gaussian``: exp(−γₖ (d − μₖ)²), μ evenly spaced from ``start`` to the cutoff; γ = 1 / 2Δ² with their spacing Δ unless ``gamma``
      is given (SchNet, section 4.1).
    - ``bessel``: √(2/c) sin(μₖ d)/d, μₖ = kπ/c (DimeNet, eq. 7).
    - ``exp_normal``: exp(−γₖ (e^(−αd) − μₖ)²), α = 5/c, μ evenly spaced from e^(−αc) to 1 and γ = (2/K (1 − e^(−αc)))⁻² unless ``gamma``
      is given (PhysNet, eq. 7).

    `centres` and `gammas` give μ and γ; whoever trains them hands tensors of their own to `basis_jets`.
    """

    kind: BasisKind
    size: int
    cutoff: float
    start: float = 0.0  #: first centre of ``gaussian``, Å
    gamma: float | None = None  #: γ, the same for all functions
    code: str = field(init=False, repr=False, compare=False)  #: everything above in one string, for operators; see `decode`

    def __post_init__(self) -> None:
        if self.kind not in BASES:
            raise ValueError(f"unknown radial basis {self.kind!r}; choose one of {', '.join(BASES)}")
        if self.size < (2 if self.kind == "gaussian" else 1):
            raise ValueError(f"a {self.kind} basis cannot have {self.size} functions")
        if not self.cutoff > self.start >= 0:
            raise ValueError(f"the cutoff must be positive and larger than start, got cutoff {self.cutoff} and start {self.start}")
        # made here because a compiler would take the numbers of a call for variables
        gamma = "" if self.gamma is None else float(self.gamma)
        object.__setattr__(self, "code", f"{self.kind} {self.size} {float(self.cutoff)} {float(self.start)} {gamma}".rstrip())

    @property
    def decay(self) -> float:
        """α of ``exp_normal``, 1/Å."""
        return 5.0 / self.cutoff

    @property
    def norm(self) -> float:
        """Factor of ``bessel``."""
        return math.sqrt(2.0 / self.cutoff)

    @property
    def width_factor(self) -> float:
        """γ of all functions (1 for ``bessel``, which has none)."""
        if self.gamma is not None:
            return self.gamma
        if self.kind == "gaussian":
            return 0.5 * ((self.size - 1) / (self.cutoff - self.start)) ** 2
        return (2 / self.size * (1 - math.exp(-5.0))) ** -2 if self.kind == "exp_normal" else 1.0

    def centres(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """μ [size]: centres of ``gaussian`` and ``exp_normal``, frequencies of ``bessel``; made in float64, then rounded."""
        if self.kind == "gaussian":
            table = torch.linspace(self.start, self.cutoff, self.size, dtype=torch.float64)
        elif self.kind == "bessel":
            table = torch.arange(1, self.size + 1, dtype=torch.float64) * (math.pi / self.cutoff)
        else:
            table = torch.linspace(math.exp(-5.0), 1, self.size, dtype=torch.float64)
        return table.to(device=device, dtype=dtype)

    def gammas(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """γ [size]."""
        return torch.full((self.size,), self.width_factor, dtype=torch.float64).to(device=device, dtype=dtype)


@dataclass(frozen=True)
class EnvelopeSpec:
    """A factor that takes everything to zero at the cutoff; with x = d/c, and 0 from x = 1 on.

    - ``cosine``: ½ (cos(πx) + 1) (SchNet, Behler 2011).
    - ``polynomial``: 1 − (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ − p(p+1)/2 xᵖ⁺², p = ``exponent`` (DimeNet, eq. 8).
    - ``exponential``: exp(−x² / (1 − x²)), infinitely smooth (GemNet-OC's code).
    - ``none``: 1, everywhere.
    """

    kind: EnvelopeKind
    cutoff: float
    exponent: int = 6
    code: str = field(init=False, repr=False, compare=False)  #: everything above in one string, for operators; see `decode`

    def __post_init__(self) -> None:
        if self.kind not in ENVELOPES:
            raise ValueError(f"unknown envelope {self.kind!r}; choose one of {', '.join(ENVELOPES)}")
        if not self.cutoff > 0:
            raise ValueError(f"the cutoff must be positive, got {self.cutoff}")
        if self.kind == "polynomial" and (self.exponent != int(self.exponent) or self.exponent < 2):
            raise ValueError(f"the polynomial envelope needs an integer exponent of at least 2, got {self.exponent}")
        object.__setattr__(self, "code", f"{self.kind} {float(self.cutoff)} {int(self.exponent)}")


class FilterMLP(NamedTuple):
    """φ → act(φ weight1ᵀ + bias1) weight2ᵀ + bias2: SchNet's filter network."""

    weight1: Tensor  #: [H, K]
    bias1: Tensor  #: [H]
    weight2: Tensor  #: [F, H]
    bias2: Tensor  #: [F]
    activation: ActivationKind = "shifted_softplus"


class FilterLinear(NamedTuple):
    """φ → φ weightᵀ + bias: PaiNN's filter."""

    weight: Tensor  #: [F, K]
    bias: Tensor  #: [F]
    #: the envelope multiplies the bias too; otherwise the filter is C(d) φ weightᵀ + bias, which jumps at the cutoff (the Open Catalyst
    #: Project's PaiNN)
    smooth_bias: bool = True


@lru_cache(maxsize=256)
def decode(basis: str, envelope: str) -> tuple[BasisSpec, EnvelopeSpec]:
    """The specs with these codes."""
    basis_kind, size, *numbers = basis.split()
    kind, cutoff, exponent = envelope.split()
    return (
        BasisSpec(basis_kind, int(size), *map(float, numbers)),  # type: ignore[arg-type]
        EnvelopeSpec(kind, float(cutoff), int(exponent)),  # type: ignore[arg-type]
    )


def basis_jets(spec: BasisSpec, d: Tensor, order: int, *, centres: Tensor | None = None, gammas: Tensor | None = None) -> Jets:
    """φ(d) and its derivatives up to ``order``, each [..., size].

    All three bases are entire functions of d, so that values a little outside of [0, cutoff] are their continuation.

    Args:
        spec: which functions.
        d: distances, [...] Å.
        order: of the last derivative, 0 to 3.
        centres: μ [size] instead of `BasisSpec.centres`; differentiable.
        gammas: γ [size] instead of `BasisSpec.gammas`; differentiable. ``bessel`` has none.
    """
    _check_order(order)
    mu = spec.centres(d.dtype, d.device) if centres is None else centres
    r = d.unsqueeze(-1)
    if spec.kind == "bessel":
        return _bessel_jets(spec.norm, mu, r, order)
    gamma = spec.gammas(d.dtype, d.device) if gammas is None else gammas
    if spec.kind == "gaussian":
        return _gauss_jets(gamma, r - mu, order)
    u = torch.exp(-spec.decay * r)
    first, second, third = (u * (-spec.decay) ** m for m in (1, 2, 3))
    g = _gauss_jets(gamma, u - mu, order)
    jets = [g[0]]
    if order >= 1:
        jets.append(g[1] * first)
    if order >= 2:
        jets.append(g[2] * first.square() + g[1] * second)
    if order >= 3:
        jets.append(g[3] * first**3 + 3 * g[2] * first * second + g[1] * third)
    return tuple(jets)


def envelope_jets(spec: EnvelopeSpec, d: Tensor, order: int, *, extend: bool = False) -> Jets:
    """C(d) and its derivatives up to ``order``, each [...].

    Args:
        spec: which envelope.
        d: distances, [...] Å.
        order: of the last derivative, 0 to 3.
        extend: continue ``cosine`` and ``polynomial`` analytically beyond the cutoff instead of by 0, for whoever interpolates
            between points on both sides of it.
    """
    _check_order(order)
    if spec.kind == "none":
        return torch.ones_like(d), *(torch.zeros_like(d) for _ in range(order))
    x = d / spec.cutoff
    if spec.kind == "exponential":
        return _exponential_jets(x, 1 / spec.cutoff, order)
    jets = _cosine_jets(x, order) if spec.kind == "cosine" else _polynomial_jets(spec.exponent, x, order)
    jets = tuple(jet * spec.cutoff**-m if m else jet for m, jet in enumerate(jets))
    return jets if extend else tuple(torch.where(x < 1, jet, 0) for jet in jets)


def activation_jets(kind: ActivationKind, z: Tensor, order: int) -> Jets:
    """The activation of each element and its derivatives up to ``order``: ln(½ eᶻ + ½), z σ(z) or tanh(z)."""
    _check_order(order)
    if kind == "tanh":
        t = torch.tanh(z)
        slope = 1 - t.square()
        return (t, slope, -2 * t * slope, slope * (6 * t.square() - 2))[: order + 1]
    if kind not in ACTIVATIONS:
        raise ValueError(f"unknown activation {kind!r}; choose one of {', '.join(ACTIVATIONS)}")
    s = torch.sigmoid(z)
    s1 = s * (1 - s)
    s2 = s1 * (1 - 2 * s)
    if kind == "shifted_softplus":
        # torch drops exp(−z) beyond the threshold
        return (torch.nn.functional.softplus(z, threshold=40) - LOG_2, s, s1, s2)[: order + 1]
    s3 = s1 * (1 - 6 * s1)
    return (z * s, s + z * s1, 2 * s1 + z * s2, 3 * s2 + z * s3)[: order + 1]


def network_jets(network: FilterMLP | FilterLinear, phi: Jets) -> Jets:
    """M(φ(d)) and its derivatives in d, each [..., F], from the jets of φ by the chain rule."""
    if isinstance(network, FilterLinear):
        value, *slopes = (jet @ network.weight.T for jet in phi)
        return value + network.bias, *slopes
    value, *z = (jet @ network.weight1.T for jet in phi)
    act = activation_jets(network.activation, value + network.bias1, len(z))
    hidden = [act[0]]
    if len(z) >= 1:
        hidden.append(act[1] * z[0])
    if len(z) >= 2:
        hidden.append(act[2] * z[0].square() + act[1] * z[1])
    if len(z) >= 3:
        hidden.append(act[3] * z[0] ** 3 + 3 * act[2] * z[0] * z[1] + act[1] * z[2])
    value, *slopes = (jet @ network.weight2.T for jet in hidden)
    return value + network.bias2, *slopes


def filter_jets(
    basis: BasisSpec,
    network: FilterMLP | FilterLinear,
    envelope: EnvelopeSpec,
    d: Tensor,
    order: int,
    *,
    centres: Tensor | None = None,
    gammas: Tensor | None = None,
    extend: bool = False,
) -> Jets:
    """W(d) = C(d) M(φ(d)) and its derivatives in d up to ``order``, each [..., F]; differentiable in all tensors.

    The bias of a `FilterLinear` without ``smooth_bias`` stands outside of C.

    Args:
        basis: φ.
        network: M.
        envelope: C.
        d: distances, [...] Å.
        order: of the last derivative, 0 to 3.
        centres: see `basis_jets`.
        gammas: see `basis_jets`.
        extend: see `envelope_jets`.
    """
    outside = network.bias if isinstance(network, FilterLinear) and not network.smooth_bias else None
    inside = network if outside is None else FilterLinear(network[0], torch.zeros_like(outside))
    m = network_jets(inside, basis_jets(basis, d, order, centres=centres, gammas=gammas))
    c = [jet.unsqueeze(-1) for jet in envelope_jets(envelope, d, order, extend=extend)]
    value = c[0] * m[0] if outside is None else c[0] * m[0] + outside
    # Leibniz' rule
    slopes = (torch.stack([math.comb(n, k) * c[n - k] * m[k] for k in range(n + 1)]).sum(0) for n in range(1, order + 1))
    return value, *slopes


def _check_order(order: int) -> None:
    if not 0 <= order <= MAX_ORDER:
        raise ValueError(f"derivatives are known up to order {MAX_ORDER}, got order {order}")


def _gauss_jets(gamma: Tensor, t: Tensor, order: int) -> Jets:
    """exp(−γt²) and its derivatives in t."""
    value = torch.exp(-gamma * t.square())
    jets = [value]
    # each derivative is the last one times −2γt plus what the product rule adds
    for m in range(1, order + 1):
        before = jets[m - 2] * (m - 1) if m >= 2 else 0
        jets.append(-2 * gamma * (t * jets[m - 1] + before))
    return tuple(jets)


def _bessel_jets(norm: float, k: Tensor, r: Tensor, order: int) -> Jets:
    """The function norm · sin(kr)/r and its derivatives in r."""
    z = k * r
    near = z.abs() < SERIES_BELOW
    # both branches stay finite everywhere, for the sake of their gradients
    far_r, near_z = torch.where(near, SERIES_BELOW / k, r), torch.where(near, z, 0)
    sine, cosine = torch.sin(k * far_r), torch.cos(k * far_r)
    far = [norm * sine / far_r]
    for m, turned in enumerate((k * cosine, -(k**2) * sine, -(k**3) * cosine)[:order], 1):
        # (r φ)⁽ᵐ⁾ = r φ⁽ᵐ⁾ + m φ⁽ᵐ⁻¹⁾
        far.append((norm * turned - m * far[m - 1]) / far_r)
    return tuple(torch.where(near, norm * k ** (m + 1) * _sinc_series(near_z, m), jet) for m, jet in enumerate(far))


def _sinc_series(z: Tensor, m: int) -> Tensor:
    """The m-th derivative of sin(z)/z for small z, by Horner's rule."""
    powers = [n for n in range(SERIES_TERMS) if 2 * n >= m]
    total = torch.zeros_like(z)
    square = z.square()
    for n in reversed(powers):
        total = total * square + (-1) ** n / math.factorial(2 * n + 1) * math.perm(2 * n, m)
    return total * z if m % 2 else total


def _cosine_jets(x: Tensor, order: int) -> Jets:
    phase = math.pi * x
    cosine, sine = torch.cos(phase), torch.sin(phase)
    turned = (0.5 * (cosine + 1), -0.5 * math.pi * sine, -0.5 * math.pi**2 * cosine, 0.5 * math.pi**3 * sine)
    return turned[: order + 1]


def _polynomial_jets(p: int, x: Tensor, order: int) -> Jets:
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    rest, scale = 1 - x, -p * (p + 1) * (p + 2) / 2
    jets = [1 + x**p * (a + x * (b + c * x))]
    if order >= 1:
        # in factors, which are exactly 0 at the cutoff
        jets.append(scale * x ** (p - 1) * rest.square())
    if order >= 2:
        jets.append(scale * x ** (p - 2) * rest * ((p - 1) - (p + 1) * x))
    if order >= 3:
        last = -4 * (p - 1) * x ** (p - 2) * rest + 2 * x ** (p - 1)
        jets.append(scale * (last if p == 2 else last + (p - 1) * (p - 2) * x ** (p - 3) * rest.square()))
    return tuple(jets)


def _exponential_jets(x: Tensor, inverse: float, order: int) -> Jets:
    """The function e · exp(−w) with w = 1/(1 − x²), whose logarithmic derivative is g = −2x w²."""
    inside = x.abs() < math.sqrt(1 - 1 / EXPONENTIAL_LIMIT)
    # the unused branch must be finite, for the sake of its gradient
    x = torch.where(inside, x, 0)
    w = 1 / (1 - x.square())
    value = torch.exp(1 - w)
    g = -2 * x * w.square()
    jets = [value, g * value]
    if order >= 2:
        g1 = -2 * w.square() - 8 * x.square() * w**3
        jets.append((g1 + g.square()) * value)
    if order >= 3:
        g2 = -24 * x * w**3 - 48 * x**3 * w**4
        jets.append((g2 + 3 * g * g1 + g**3) * value)
    return tuple(torch.where(inside, jet, 0) * inverse**m for m, jet in enumerate(jets[: order + 1]))
