"""An imitation of CUDA graphs on a CPU: operators with their tensors and numbers, run again.

As a graph's kernels do, a replayed operator reads and writes the memory that it was recorded with, and has
the numbers that it was recorded with. Whatever Python computes is not repeated. Recording changes no
memory that exists when it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

Call = tuple[Any, Sequence[Any], Mapping[str, Any], list[Tensor]]
"""Operator, arguments, options, and the results that are memory of their own."""


WRITING = frozenset({"native_batch_norm"})
"""Operators that write some of their arguments, the running statistics, though their schema does not say
so."""


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors_in(values: Any) -> list[Tensor]:
    return [one for one in tree_flatten(values)[0] if isinstance(one, Tensor)]


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self._calls = calls
        self._made: set[int] = set()
        self.written: dict[int, tuple[Tensor, Tensor]] = {}
        """Memory from before the recording that an operator writes, and what was in it."""

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        inputs = tensors_in((arguments, options))
        if function._schema.is_mutable or function.overloadpacket.__name__ in WRITING:
            for tensor in inputs:
                if address(tensor) not in self._made and address(tensor) not in self.written:
                    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                    self.written[address(tensor)] = whole, whole.clone()
        result = function(*arguments, **options)
        read = {address(tensor) for tensor in inputs}
        own = [tensor for tensor in tensors_in(result) if address(tensor) not in read]
        self._made.update(address(tensor) for tensor in own)
        self._calls.append((function, arguments, options, own))
        return result


class RecordedGraph:
    """A `Recording` of operators on a CPU."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self.warm_ups = self.captures = self.replays = 0

    def warm_up(self, body: Callable[[], None]) -> None:
        self.warm_ups += 1
        body()

    def capture(self, body: Callable[[], None]) -> None:
        self.captures += 1
        with _Recorder(self._calls) as recorder:
            body()
        with torch.no_grad():
            for memory, before in recorder.written.values():
                memory.copy_(before)
            for *_, own in self._calls:  # nothing has been computed yet
                for tensor in own:
                    tensor.detach().fill_(torch.nan if tensor.is_floating_point() else 0)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for function, arguments, options, own in self._calls:
                again = tensors_in(function(*arguments, **options))
                read = {address(tensor) for tensor in tensors_in((arguments, options))}
                fresh = [tensor for tensor in again if address(tensor) not in read]
                for tensor, value in zip(own, fresh, strict=True):
                    tensor.detach().copy_(value)
