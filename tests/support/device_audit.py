"""Find what would make the host wait for the device, without a device.

On a CPU every tensor is the host's. So the audit takes the tensors that exist when it begins, and the
results of operators on them, to be on the device; all other tensors come from the host's memory: copying
them to a device would wait for it, as reading an element does.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READING = frozenset(
    {
        "_local_scalar_dense",  # item(), float(), bool(), int(), tolist() of an element
        "is_nonzero",
        "equal",
        "nonzero",
        "argwhere",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "unique_dim_consecutive",
        "bincount",
        "repeat_interleave",
        "histc",
    }
)
"""Operators whose result, or its shape, the host must read. See
torch.cuda.set_sync_debug_mode."""
INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
"""Operators that take a tensor of indices; a mask is one of them only after `nonzero`."""


class WouldSynchronise(AssertionError):
    """An operator for which the host would wait for the device."""


class DeviceAudit(TorchDispatchMode):
    """Raise `WouldSynchronise` where the host would wait for the device."""

    def __enter__(self) -> DeviceAudit:
        tensors = [
            one
            for one in gc.get_objects()
            if issubclass(type(one), Tensor) and not isinstance(one, FakeTensor)
        ]
        self._on_device = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._kept: list[Tensor] = []  # so that no address is used twice
        self.operators: list[str] = []
        super().__enter__()
        return self

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        name = function.overloadpacket.__name__
        self.operators.append(str(function))
        if name in READING:
            raise WouldSynchronise(f"{function}: the host reads what the device computes")
        if name == "lift_fresh":
            raise WouldSynchronise(f"{function}: the host makes a tensor of its own numbers")
        inputs = [one for one in tree_flatten((arguments, options))[0] if isinstance(one, Tensor)]
        for tensor in inputs:
            if tensor.dim() and tensor.untyped_storage().data_ptr() not in self._on_device:
                raise WouldSynchronise(
                    f"{function} reads a tensor {tuple(tensor.shape)} of the host's memory"
                )
        if name in INDEXING and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in inputs[1:]):
            raise WouldSynchronise(f"{function}: the host counts the elements that a mask selects")
        result = function(*arguments, **options)
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                self._kept.append(tensor)
                self._on_device.add(tensor.untyped_storage().data_ptr())
        return result
