"""Choice between fast kernels and their plain PyTorch twins.

A fast kernel runs on real tensors in eager mode, and in a graph of ``torch.compile`` for a CPU it
is one operation. Other graphs, transforms of :mod:`torch.func`, tensor subclasses and dispatch
modes get the plain twin, whose operations PyTorch knows. A kernel that stands for several modules
and methods runs only while none of them is hooked, patched, overridden or replaced, so that a
changed step is the step that runs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

MODES = ('fast', 'reference', 'triton')

F = TypeVar('F', bound=Callable[..., Any])


def _known(mode: str, source: str) -> str:
    if mode not in MODES:
        raise ValueError(f'{source}: unknown kernels {mode!r}; choose from {", ".join(MODES)}')
    return mode


_OF_PROCESS = _known(os.environ.get('FOCAL_MM_KERNELS') or 'fast', 'FOCAL_MM_KERNELS')
_mode: ContextVar[str] = ContextVar('kernels', default=_OF_PROCESS)
_recorded_eager: ContextVar[bool | None] = ContextVar('recorded_eager', default=None)


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Choose the kernels within a ``with`` block, in this thread.

    The environment variable ``FOCAL_MM_KERNELS`` chooses them for a process.

    Args:
        mode (str): ``'fast'``, the default; ``'reference'``, the plain twins alone; or
            ``'triton'``, fast kernels and, on a GPU, :mod:`.gated_context_triton`.

    Raises:
        ValueError: For an unknown mode.
    """
    token = _mode.set(_known(mode, 'focal_mm.kernels.use'))
    try:
        yield
    finally:
        _mode.reset(token)


def is_graph() -> bool:
    """Return whether the network is being compiled, exported or traced. Sizes may then be symbols,
    and a branch on a size makes a separate graph for each outcome.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_eager() -> bool:
    """Return whether operations run at once and only once, unobserved: no graph, no transform of
    :mod:`torch.func`, no forward-mode derivative, no dispatch mode, no global module hook.
    """
    if is_graph():
        return False
    recorded = _recorded_eager.get()
    if recorded is not None:
        return recorded
    return not (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or _has_any_global_hook()
    )


# What PyTorch has before 2.6 is true only in an export, too, outside of what is traced.
_is_exporting = getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)


def is_compiled() -> bool:
    """Return whether torch.compile makes a graph that may have operations of ours."""
    return torch.compiler.is_dynamo_compiling() and _takes_operations()


def _takes_operations() -> bool:
    return not (
        _is_exporting() or _mode.get() == 'reference' or torch._C._are_functorch_transforms_active()
    )


# Not traced, but asked once, when the graph is made. torch.compiler.assume_constant_result does the
# same, and imports the compiler.
_takes_operations._dynamo_marked_constant = True  # type: ignore[attr-defined]


def compiled_kernel(name: str, kernel: Callable, fake: Callable) -> Any:
    """Make a kernel an operation of graphs.

    Args:
        name (str): Its name among the operations of this package.
        kernel (callable): Computes new tensors, contiguous ones, and changes none.
        fake (callable): Takes the same arguments and returns tensors of the same shapes. A length
            that may be a symbol is asked for by ``shape``: ``len`` makes it a constant.
    """
    operation = torch.library.custom_op(f'focal_mm::{name}', kernel, mutates_args=())
    operation.register_fake(fake)
    return operation


def record_choice() -> Callable[[], AbstractContextManager]:
    """Return a context manager that makes the choice of this moment again: what is recomputed in a
    backward pass must be what the forward pass stored.
    """
    mode, eager = _mode.get(), is_eager()

    @contextmanager
    def again() -> Iterator[None]:
        tokens = _mode.set(mode), _recorded_eager.set(eager)
        try:
            yield
        finally:
            _mode.reset(tokens[0])
            _recorded_eager.reset(tokens[1])

    return again


def differentiates_again(grad: Tensor) -> bool:
    """Return whether a backward pass has to be one that PyTorch can differentiate or map again, as
    with ``create_graph=True`` or ``is_grads_batched=True``.
    """
    return not is_graph() and (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(grad)
    )


def is_fast(*tensors: Tensor | None) -> bool:
    """Return whether a fast kernel may compute from these tensors, in eager mode."""
    return (
        is_eager()
        and _mode.get() != 'reference'
        and all(
            tensor is None
            or (
                type(tensor) in (Tensor, nn.Parameter)
                and tensor.device.type in ('cpu', 'cuda', 'meta')  # meta: to estimate memory
                and tensor.is_floating_point()
                and tensor.numel() > 0
            )
            for tensor in tensors
        )
    )


# Types of products that oneDNN has.
_PRODUCTS = torch.float, torch.bfloat16, torch.half


def is_fast_in_graph(*tensors: Tensor | None) -> bool:
    """Return whether a fast kernel may be an operation of the graph that torch.compile makes."""
    return is_compiled() and all(
        tensor is None or (tensor.is_cpu and tensor.dtype in _PRODUCTS and tensor.numel() > 0)
        for tensor in tensors
    )


def is_triton(*tensors: Tensor) -> bool:
    """Return whether Triton was asked for and can take these tensors: on a GPU, of one dtype other
    than double, with fewer than 2^31 elements, since offsets in its kernels have 32 bits.
    """
    first = tensors[0]
    return (
        _mode.get() == 'triton'
        and first.is_cuda
        and first.numel() < 2**31
        and first.dtype in (torch.float, torch.half, torch.bfloat16)
        and all(tensor.dtype == first.dtype for tensor in tensors)
    )


# The original `forward` of each class that kernels may stand for; patched classes differ from it.
_FORWARDS: dict[type, Callable] = {
    cls: cls.forward
    for cls in (
        nn.Linear,
        nn.Conv2d,
        nn.LayerNorm,
        nn.BatchNorm2d,
        nn.GELU,
        nn.Dropout,
        nn.Identity,
        nn.Sequential,
        nn.ModuleList,
    )
}
_STEPS: set[tuple[str, Callable]] = set()


def fused_module(cls: type[nn.Module]) -> type[nn.Module]:
    """Register a module class that kernels may stand for; a decorator."""
    _FORWARDS[cls] = cls.forward
    return cls


def fused_step(method: F) -> F:
    """Register a method that kernels may stand for; a decorator. Any other function in its place,
    from a subclass or a patch, is called instead of the kernel.
    """
    _STEPS.add((method.__name__, method))
    return method


def is_unhooked(module: nn.Module, cls: type) -> bool:
    """Return whether a module computes exactly what its class does, and nothing observes it.

    Args:
        module (nn.Module): The module. A GELU must be the exact one and a dropout inactive, as the
            kernels assume.
        cls (type): The class that it was built as; subclasses do not count.
    """
    return (
        type(module) is cls
        and _FORWARDS.get(cls) is cls.forward
        and 'forward' not in module.__dict__
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
        and not (cls is nn.GELU and module.approximate != 'none')
        and not (cls is nn.Dropout and module.training and module.p)
    )


def can_fuse(*parts: tuple[nn.Module, type | str]) -> bool:
    """Return whether a kernel may compute what modules and methods were asked for.

    Args:
        parts: Every module whose weights the kernel takes or whose computation it repeats, with
            its class; and every method, marked by :func:`fused_step`, that the kernel stands for,
            as its module and its name.
    """
    is_known = is_fast_in_graph if is_graph() else is_fast
    if not is_known():
        return False
    for module, kind in parts:
        if isinstance(kind, str):
            known = (kind, getattr(type(module), kind)) in _STEPS
            if not known or kind in module.__dict__:
                return False
        elif not (is_unhooked(module, kind) and is_known(*module._parameters.values())):
            return False
    return True


def wants_grad(*tensors: Tensor | None) -> bool:
    """Return whether a result of these tensors takes part in a backward pass."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """Cast tensors (None stays) as autocast does for linear layers. PyTorch does not do it for
    a :class:`torch.autograd.Function`.
    """
    return tuple(t if t is None else t.to(autocast_dtype(t)) for t in tensors)


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of a tensor in a linear layer: autocast's, if enabled, else its own."""
    device = tensor.device.type
    if device == 'meta' or tensor.dtype == torch.double or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)


def reference_gradients(
    reference: Callable[..., Tensor],
    inputs: tuple[Tensor | None, ...],
    grad: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated again, through the plain twin of a kernel.

    A kernel's backward calls it where gradients are enabled, as with ``create_graph=True``.

    Args:
        reference: The plain twin.
        inputs: Its arguments, as the kernel saved them.
        grad (Tensor): Gradient of its result.
        needed: Which of the inputs want a gradient.

    Returns:
        tuple: A gradient, or None, for each input.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        out = reference(*inputs)
    wanted = [t for t, want in zip(inputs, needed, strict=True) if want and t is not None]
    grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=again, allow_unused=True))
    return tuple(next(grads) if want else None for want in needed)


def cached(maxsize: int) -> Callable[[Callable], Any]:
    """Cache the results of a function of sizes in eager mode; a decorator.

    In graphs and transforms every call computes anew. Cached tensors are never inference tensors,
    so that training can use them.
    """

    def decorate(function: Callable) -> Any:
        keep = lru_cache(maxsize)(torch.inference_mode(False)(function))

        @wraps(function)
        def call(*args: Any) -> Any:
            return keep(*args) if is_eager() else function(*args)

        call.cache_clear = keep.cache_clear  # type: ignore[attr-defined]
        return call

    return decorate
