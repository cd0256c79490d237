"""What the geometric loss promises beyond the tests of all ops: its definition, its invariance, and its behaviour at zero vectors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastkd_kernels.edge_to_node_loss import numba_launch
from fastkd_kernels.vector_geometric_loss import reference
from fastkd_kernels.vector_geometric_loss.op import vector_geometric_loss
from torch import Tensor

BACKENDS = [
    "reference",
    "numba",
    pytest.param(
        "triton",
        marks=[
            pytest.mark.triton,
            pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only"),
        ],
    ),
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_mix = pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])


def make(count: int, channels: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((count, 3, channels), (width, channels), (count, 3, width))
    v, weight, target = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in sizes)
    v, weight, target = (tensor.to(dtype).requires_grad_() for tensor in (v, weight / max(channels, 1) ** 0.5, target))
    return v, weight, target


@each_backend
@each_mix
def test_value_is_the_definition(backend: str, mix: float) -> None:
    v, weight, target = make(9, 4, 6)
    u = v @ weight.T
    lengths = (u.norm(dim=1) - target.norm(dim=1)).abs()
    angles = 1 - torch.nn.functional.cosine_similarity(u, target, dim=1)
    per_node = ((1 - mix) * lengths + mix * angles).mean(1)
    torch.testing.assert_close(vector_geometric_loss(v, weight, target, mix=mix, backend=backend), per_node.mean())
    # images of 2, 0, 4 and 3 nodes; the empty one takes no part
    ptr = torch.tensor([0, 2, 2, 6, 9])
    want = torch.stack([per_node[:2].mean(), per_node[2:6].mean(), per_node[6:].mean()]).mean()
    got = vector_geometric_loss(v, weight, target, mix=mix, graph_ptr=ptr, backend=backend)
    torch.testing.assert_close(got, want)
    gradients = torch.autograd.grad(got, (v, weight, target))
    torch.testing.assert_close(gradients, torch.autograd.grad(want, (v, weight, target)))


@each_backend
def test_weights_enter_as_a_weighted_mean(backend: str) -> None:
    v, weight, target = make(6, 3, 5)
    node_weight = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25, 3.0], dtype=torch.float64, requires_grad=True)
    ptr = torch.tensor([0, 2, 6])

    def of_batch(*inputs: Tensor) -> Tensor:
        return vector_geometric_loss(*inputs[:3], node_weight=inputs[3], backend=backend)

    def of_images(*inputs: Tensor) -> Tensor:
        return vector_geometric_loss(*inputs[:3], node_weight=inputs[3], graph_ptr=ptr, backend=backend)

    inputs = (v, weight, target, node_weight)
    for function, options in ((of_batch, {}), (of_images, {"graph_ptr": ptr})):
        want = reference.vector_geometric_loss(v, weight, target, node_weight=node_weight, **options)
        torch.testing.assert_close(function(*inputs), want)
        torch.testing.assert_close(function(v, weight, target, 17 * node_weight), want)
        torch.testing.assert_close(torch.autograd.grad(function(*inputs), inputs), torch.autograd.grad(want, inputs))
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    # an image of weight 0 is not there, nor is a node of weight 0
    partial = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    kept = torch.tensor([2, 4, 5])
    want = vector_geometric_loss(v[kept], weight, target[kept], backend=backend)
    torch.testing.assert_close(vector_geometric_loss(v, weight, target, graph_ptr=ptr, node_weight=partial, backend=backend), want)
    for options in ({}, {"graph_ptr": ptr}):
        none = vector_geometric_loss(v, weight, target, node_weight=torch.zeros_like(partial), backend=backend, **options)
        assert none.item() == 0
        assert not torch.autograd.grad(none, weight)[0].any()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@each_mix
@pytest.mark.parametrize("zero", ["student", "teacher", "both", "nearly"])
def test_zero_vectors(backend: str, dtype: torch.dtype, mix: float, zero: str) -> None:
    """A vector without direction has 1 − cos = 1 and pulls on nothing; value and derivatives of two orders are finite."""
    v, weight, target = (tensor.detach() for tensor in make(3, 4, 6, dtype))
    if zero in ("student", "both"):
        v[1] = 0
    if zero in ("teacher", "both"):
        target[1] = 0
    if zero == "nearly":
        v[1] *= 1e-8
        target[1] *= 1e-30
    inputs = tuple(tensor.requires_grad_() for tensor in (v, weight, target))
    loss = vector_geometric_loss(*inputs, mix=mix, node_weight=torch.tensor([0.0, 1.0, 0.0], dtype=dtype), backend=backend)
    lengths = ((v[1] @ weight.T).norm(dim=0) - target[1].norm(dim=0)).abs().mean()
    torch.testing.assert_close(loss, (1 - mix) * lengths + mix)
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    exact = torch.autograd.grad(
        reference.vector_geometric_loss(*inputs, mix=mix, node_weight=torch.tensor([0.0, 1.0, 0.0], dtype=dtype)), inputs
    )
    torch.testing.assert_close(gradients, exact)
    if zero != "teacher":
        assert not gradients[0].any()
        assert not gradients[1].any()
    if zero != "student":
        assert not gradients[2].any()
    seconds = torch.autograd.grad(sum(gradient.sum() for gradient in gradients), inputs, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
    assert all(second.isfinite().all() for second in seconds)


@each_backend
def test_equal_vectors_have_no_loss_and_no_pull(backend: str) -> None:
    v, weight, _ = make(5, 4, 6)
    target = (v @ weight.T).detach()
    loss = vector_geometric_loss(v, weight, target, backend=backend)
    assert abs(loss.item()) < 1e-15
    # lengths that differ by a rounding still pull with the slope 1 of their difference; angles do not
    loss = vector_geometric_loss(v, weight, target, mix=1.0, backend=backend)
    assert all(gradient.abs().max() < 1e-14 for gradient in torch.autograd.grad(loss, (v, weight)))


@each_backend
def test_small_angles_keep_their_digits(backend: str) -> None:
    """1 − cos of 1e-6: as a difference of nearly equal numbers it would have one digit in float32."""
    v, weight, _ = (tensor.detach() for tensor in make(64, 8, 16, torch.float32))
    u = v.double() @ weight.double().T
    noise = torch.randn(u.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = (u + 1e-3 * u.norm(dim=1, keepdim=True) * noise).float()
    want = reference.vector_geometric_loss(v.double(), weight.double(), target.double(), mix=1.0)
    assert 1e-7 < want.item() < 2e-6
    got = vector_geometric_loss(v, weight, target, mix=1.0, backend=backend)
    assert abs(got.item() - want.item()) <= 1e-3 * want.item()


@each_backend
@each_mix
def test_rotating_both_sides_changes_nothing(backend: str, mix: float) -> None:
    v, weight, target = (tensor.detach() for tensor in make(5, 4, 6))
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    turned = vector_geometric_loss(rotation @ v, weight, rotation @ target, mix=mix, backend=backend)
    torch.testing.assert_close(turned, vector_geometric_loss(v, weight, target, mix=mix, backend=backend))


@each_backend
@each_mix
def test_every_set_of_inputs_that_require_grad(backend: str, mix: float) -> None:
    for needed in itertools.product((False, True), repeat=3):
        if not any(needed):
            continue
        found: list[list[Tensor]] = []
        for function in (vector_geometric_loss, reference.vector_geometric_loss):
            options: dict[str, Any] = {"backend": backend} if function is vector_geometric_loss else {}
            tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip(make(5, 3, 4), needed, strict=True)]
            leaves = [tensor for tensor in tensors if tensor.requires_grad]
            gradients = torch.autograd.grad(function(*tensors, mix=mix, **options), leaves, create_graph=True)
            curved = [(gradient * torch.linspace(1, 2, gradient.numel()).reshape(gradient.shape)).sum() for gradient in gradients]
            found.append([*gradients, *torch.autograd.grad(curved, leaves)])
        torch.testing.assert_close(*found)


@each_backend
def test_third_order(backend: str) -> None:
    def third(function: Callable[..., Tensor], **options: Any) -> tuple[Tensor, ...]:
        inputs = make(4, 2, 3)
        scalar = function(*inputs, mix=0.4, **options)
        for _ in range(2):
            gradients = torch.autograd.grad(scalar, inputs, create_graph=True)
            scalar = sum(gradient.square().sum() for gradient in gradients)  # type: ignore[assignment]
        return torch.autograd.grad(scalar, inputs)

    torch.testing.assert_close(third(vector_geometric_loss, backend=backend), third(reference.vector_geometric_loss))


@each_backend
def test_nothing_of_the_projections_size_is_saved(backend: str) -> None:
    v, weight, target = make(37, 4, 11)
    inputs = {tensor.data_ptr() for tensor in (v, weight, target)}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = vector_geometric_loss(v, weight, target, graph_ptr=torch.tensor([0, 20, 37]), backend=backend)
    assert loss.requires_grad
    assert saved
    assert all(tensor.data_ptr() in inputs or tensor.numel() <= 38 for tensor in saved)


@each_backend
def test_scaling_and_a_retained_graph(backend: str) -> None:
    inputs = make(8, 3, 5)
    loss = vector_geometric_loss(*inputs, backend=backend)
    one = torch.tensor(1.0, dtype=torch.float64)
    first = torch.autograd.grad(loss, inputs, one, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    eighth = torch.autograd.grad(loss, inputs, one / 8, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    for a, b, c, d in zip(first, kept, eighth, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, 8 * c)
        assert torch.equal(a, d)


@each_backend
def test_no_nodes_no_channels(backend: str) -> None:
    for count, channels, width in ((0, 3, 4), (3, 2, 0), (1, 1, 1)):
        inputs = make(count, channels, width)
        for options in ({}, {"graph_ptr": torch.tensor([0, count])}):
            loss = vector_geometric_loss(*inputs, backend=backend, **options)
            torch.testing.assert_close(loss, reference.vector_geometric_loss(*inputs, **options))
            gradients = torch.autograd.grad(loss, inputs)
            assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in inputs]
            assert all(gradient.isfinite().all() for gradient in gradients)


@each_backend
@each_mix
def test_nan_is_not_hidden(backend: str, mix: float) -> None:
    v, weight, target = make(3, 2, 4)
    with torch.no_grad():
        target[1, 0, 2] = float("nan")
    loss = vector_geometric_loss(v, weight, target, mix=mix, backend=backend)
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, target)
    assert gradient[1, :, 2].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


def test_tiles_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(23, 4, 6)
    whole = torch.autograd.grad(vector_geometric_loss(*tensors, backend="numba"), tensors)
    monkeypatch.setattr(numba_launch, "TILE_ELEMENTS", 6 * 7)
    tiled = torch.autograd.grad(vector_geometric_loss(*tensors, backend="numba"), tensors)
    torch.testing.assert_close(tiled, whole, rtol=1e-13, atol=1e-15)


@pytest.mark.triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only")
def test_ranges_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkd_kernels.edge_to_node_loss import projection_launch

    tensors = make(41, 4, 6)
    monkeypatch.setattr(projection_launch, "ROWS_PER_PART", 16)
    whole = torch.autograd.grad(vector_geometric_loss(*tensors, backend="triton"), tensors)
    monkeypatch.setattr(projection_launch, "PULL_ELEMENTS", 6 * 48)
    for a, b in zip(torch.autograd.grad(vector_geometric_loss(*tensors, backend="triton"), tensors), whole, strict=True):
        assert torch.equal(a, b)


def test_wrong_arguments_are_named() -> None:
    v, weight, target = make(4, 2, 3)
    with pytest.raises(ValueError, match=r"target \[4, 3, 2\]"):
        vector_geometric_loss(v, weight, target[:, :, :2])
    with pytest.raises(ValueError, match=r"v \[4, 2, 2\]"):
        vector_geometric_loss(v[:, :2], weight, target)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        vector_geometric_loss(v, weight.float(), target)
    with pytest.raises(ValueError, match=r"mix 1\.5"):
        vector_geometric_loss(v, weight, target, mix=1.5)
    with pytest.raises(ValueError, match=r"eps 0\.0"):
        vector_geometric_loss(v, weight, target, eps=0.0)
    with pytest.raises(ValueError, match=r"node_weight \[3\]"):
        vector_geometric_loss(v, weight, target, node_weight=torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"graph_ptr \[2\] torch\.int32"):
        vector_geometric_loss(v, weight, target, graph_ptr=torch.tensor([0, 4], dtype=torch.int32))
