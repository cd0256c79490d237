"""Which of the three implementations of an operator runs, and how an operator with three bodies is registered.

Every operator's schema ends in ``str backend``. A public function settles it once with `resolve`, from its ``backend=`` argument,
the environment variable ``FASTKD_BACKEND`` or the tensor's device, and derivatives hand it on: one choice holds for all orders.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .namespace import NAMESPACE

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

Backend = Literal["triton", "numba", "reference"]
BACKENDS: tuple[Backend, ...] = ("triton", "numba", "reference")
#: Numbers below which `plain_is_faster`: for sums over edges, and for losses, which are matrix products at heart.
PLAIN_BELOW, PLAIN_LOSS_BELOW = 2**17, 2**20
ENVIRONMENT_VARIABLE = "FASTKD_BACKEND"

_NUMBA_DTYPES = (torch.float32, torch.float64)


#: Whether the numba kernels are in this copy of the package; copies for a kernel hub go without.
HAS_NUMBA_KERNELS = importlib.util.find_spec(f"{__package__}.cpu") is not None

# looked up once (nothing is imported), in a table that torch.compile can trace through
_INSTALLED: dict[Backend, bool] = {
    "triton": importlib.util.find_spec("triton") is not None,
    "numba": importlib.util.find_spec("numba") is not None and HAS_NUMBA_KERNELS,
    "reference": True,
}


def installed(backend: Backend) -> bool:
    """Whether this copy has the backend and the package behind it can be found."""
    return _INSTALLED[backend]


def plain_is_faster(backend: str | None, like: Tensor, numbers: int, below: int = PLAIN_BELOW) -> bool:
    """Whether to leave to torch what it does as well: on a CPU, for so little data that a kernel saves less than an operator's Python takes.

    Args:
        backend: as the caller asked; a backend that is named, here or in the environment, is taken.
        like: an input.
        numbers: how many of them the largest tensor has that the plain form makes or reads.
        below: how many are little.
    """
    if backend is not None or not 0 < numbers < below or not like.is_cpu:
        return False
    # operators keep their precision under autocast, plain torch would not
    exact = like.dtype in _NUMBA_DTYPES and not torch.is_autocast_enabled("cpu")
    return exact and runs_directly((like,)) and ENVIRONMENT_VARIABLE not in os.environ


def resolve(backend: str | None, tensor: Tensor) -> Backend:
    """The backend for ``tensor``: the argument, else ``FASTKD_BACKEND``, else the fastest that fits its device and dtype.

    Raises:
        ValueError: if the backend is unknown, not installed, or cannot run on this device.
    """
    wanted = backend or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if wanted is None:
        return _fastest(tensor.device.type, tensor.dtype)
    if wanted not in BACKENDS:
        raise ValueError(f"unknown backend {wanted!r}; choose one of {', '.join(BACKENDS)}")
    chosen: Backend = wanted
    if chosen == "numba" and not HAS_NUMBA_KERNELS:
        raise ValueError("backend 'numba' was asked for, but this copy of the kernels is built without it; 'reference' runs on a CPU")
    if not installed(chosen):
        raise ValueError(f"backend {chosen!r} was asked for, but the package {chosen!r} is not installed")
    if chosen == "numba" and (tensor.device.type != "cpu" or tensor.dtype not in _NUMBA_DTYPES):
        raise ValueError(f"backend 'numba' runs float32 and float64 on a CPU, got {tensor.dtype} on {tensor.device}")
    if chosen == "triton" and tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("backend 'triton' runs on a CPU only in Triton's interpreter: set TRITON_INTERPRET=1 before the start")
    return chosen


def _fastest(device_type: str, dtype: torch.dtype) -> Backend:
    if device_type == "cuda" and installed("triton"):
        return "triton"
    if device_type == "cpu" and dtype in _NUMBA_DTYPES and installed("numba"):
        return "numba"
    return "reference"


Body = Callable[..., Any]


class Operator:
    """One registered operator; call it with its arguments, the backend last.

    In eager mode it runs its body, and autograd's node around it, directly: the dispatcher's route through Python costs several times as
    much as a kernel on a small molecule. Whatever traces or transforms (torch.compile, make_fx, fake tensors, functorch, tensor
    subclasses) sees the operator of `torch.library` instead. Both routes share body and derivative.
    """

    def __init__(self, registered: CustomOpDef, body: Body) -> None:
        self.registered = registered
        self._body = body
        self._node: type[torch.autograd.Function] | None = None

    def register_autograd(self, backward: Body, *, setup_context: Body) -> None:
        """Derivative of the operator, with the meaning of `torch.library.register_autograd`; ``backward`` is differentiated again."""
        self.registered.register_autograd(backward, setup_context=setup_context)
        body = self._body

        def forward(ctx: Any, *args: Any) -> Any:
            output = body(*args)
            setup_context(ctx, args, output)
            return output

        attributes = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._node = type(f"{body.__name__}_node", (torch.autograd.Function,), attributes)

    def __call__(self, *args: Any) -> Any:
        if not runs_directly(args):
            _refuse_tangents(args)
            return self.registered(*args)
        if self._node is not None and torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return self._node.apply(*args)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return self._body(*args)


#: Tests set this to False to send everything through the dispatcher.
DIRECT = True


def runs_directly(args: Sequence[Any]) -> bool:
    """Whether nothing looks on that must see the registered operator: no tracer, no mode, no transform, plain tensors only."""
    return (
        DIRECT
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and all(type(a) is Tensor or type(a) is torch.nn.Parameter for a in args if isinstance(a, Tensor))
    )


def _refuse_tangents(args: Sequence[Any]) -> None:
    """Forward mode is an error, because `torch.library` drops tangents without a word.

    Raises:
        NotImplementedError: if an argument carries a tangent.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    unpack: Callable[[Tensor], Any] = forward_ad.unpack_dual
    if any(unpack(a).tangent is not None for a in args if isinstance(a, Tensor)):
        raise NotImplementedError("fastkd's operators have derivatives in reverse mode alone, not in forward mode (jvp, jacfwd, hessian)")


def define_op(name: str, schema: str, *, fake: Body, reference: Body, numba: Body, triton: Body) -> Operator:
    """Register an operator, in the namespace of this copy of the package, with one body per backend.

    Args:
        name: operator name.
        schema: ``"(Tensor x, …) -> Tensor"`` without the backend, which is added as the last argument ``str backend``.
        fake: shapes and dtypes of the outputs; called without the backend.
        reference: plain torch, any device. Must not return (a view of) an input.
        numba: launches CPU kernels.
        triton: launches GPU kernels, or the interpreter's on a CPU.

    Returns:
        The operator. Autograd is registered by the caller, at every order.
    """
    bodies = {"reference": reference, "numba": numba, "triton": triton}
    arguments, returns = schema.rsplit(") ->", 1)

    def body(*args: Any) -> Any:
        return bodies[args[-1]](*args[:-1])

    def fake_body(*args: Any) -> Any:
        return fake(*args[:-1])

    body.__name__ = fake_body.__name__ = name
    full_schema = f"{arguments}, str backend) ->{returns}"
    registered = torch.library.custom_op(f"{NAMESPACE}::{name}", body, mutates_args=(), schema=full_schema)
    registered.register_fake(fake_body)
    return Operator(registered, body)


def save_inputs(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    """A `setup_context` that keeps every tensor input, and the rest in ``ctx.rest``, in order."""
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.rest = tuple(value for value in inputs if not isinstance(value, Tensor))


def wanted(ctx: Any, position: int) -> bool:
    """Whether the backward pass under way will use the gradient of the tensor argument at ``position`` (None does not count).

    ``needs_input_grad`` says that a tensor requires grad; a force pass, which differentiates by positions alone, leaves the gradients
    of all parameters unused all the same. A node of Python may name a ``leaf``, the one tensor that it
    passes gradients to: once that asks for none any more, neither does the node. Where the engine cannot tell, the answer is yes.
    """
    try:
        node = ctx.next_functions[position][0]
        leaf = getattr(node, "leaf", None)
        if node is None or (leaf is not None and not leaf.requires_grad):
            return False
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, IndexError, RuntimeError):
        return True
