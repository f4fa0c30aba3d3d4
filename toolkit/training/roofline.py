"""What a training step computes and moves, and the limits of the device."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..analysis.training_profile import Limits
from .step import synchronize

# The sides of the matrices, and the bytes of the copy, which no cache holds: a second of work or less.
_SIDE = {"cpu": 2048, "cuda": 8192}
_COPIED_BYTES = {"cpu": 1 << 29, "cuda": 1 << 30}
_REPEATS = 5
_DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def measure_limits(device: torch.device, precision: str) -> Limits:
    """The largest speeds of a matrix product in a precision, and of a copy, on the threads that training uses."""
    side, dtype = _SIDE[device.type], _DTYPES[precision]
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product_s = _fastest(lambda: first @ second, device)
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy_s = _fastest(lambda: target.copy_(source), device)
    return Limits(2 * side**3 / product_s, 2 * source.nbytes / copy_s)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls: another process only makes it slower."""
    seconds = []
    for _ in range(_REPEATS + 1):  # the first one also prepares
        synchronize(device)
        begun = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


class Counter:
    """Counts floating-point operations and bytes while it is entered.

    Operations are those of convolutions and matrix products; a multiplication and an addition are two. Bytes are those
    of every operator's inputs and outputs, without views: the traffic if no cache held anything.
    """

    def __init__(self) -> None:
        self._flops = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
        )
        self._traffic = _Traffic()

    def __enter__(self) -> "Counter":
        self._flops.__enter__()
        self._traffic.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._traffic.__exit__(*raised)
        self._flops.__exit__(*raised)

    @property
    def flops(self) -> int:
        """Operations so far."""
        return self._flops.get_total_flops()

    @property
    def moved(self) -> int:
        """Bytes so far."""
        return self._traffic.moved


def _convolution_backward(
    grad_shape: Any, input_shape: Any, weight_shape: Any, *options: Any, out_shape: Any, **_: Any
) -> int:
    """The gradients of a convolution's input and weight each take as many operations as the convolution.

    torch's own formula counts that of the weight once per group (torch 2.14, conv_backward_flop).
    """
    transposed, wanted = options[4], options[7]
    small = input_shape if transposed else grad_shape
    positions = torch.Size(small[2:]).numel()
    del out_shape
    return 2 * grad_shape[0] * positions * torch.Size(weight_shape).numel() * sum(wanted[:2])


class _Traffic(TorchDispatchMode):
    moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            read = tree_leaves((args, kwargs))
            written = [value for value in tree_leaves(result) if not any(value is entry for entry in read)]
            changed = [
                leaf
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info and argument.alias_info.is_write
                for leaf in tree_leaves(value)
            ]
            self.moved += sum(_bytes(value) for value in (*read, *written, *changed))
        return result


def _bytes(value: object) -> int:
    """Of a tensor; one that was expanded has less memory than elements."""
    if not isinstance(value, torch.Tensor):
        return 0
    return min(value.nbytes, value.untyped_storage().nbytes())
