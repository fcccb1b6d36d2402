"""Interface through which instruments reach all workers, implemented by `World`."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Group(Protocol):
    """All workers of a run, for communication from one of them."""

    @property
    def rank(self) -> int: ...

    def gather(self, value: T) -> list[T]: ...

    def gather_to_first(self, value: T) -> list[T]: ...

    def sum(self, tensor: Tensor) -> Tensor: ...
