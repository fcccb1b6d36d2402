"""Steps of a worker.

F2:1    forward of segment 2 for micro-batch 1 (F2: for all micro-batches at once)
B2:1    its backward; `sync` names the buckets whose gradients it completes and starts to sum
X3:1>   start exchange 3 of micro-batch 1, forward; <X3:1 starts its transpose in the backward pass
W3:1>   wait for exchange 3 of micro-batch 1, forward; <W3:1 waits for its transpose
U4      wait for the summed gradients of bucket 4, then update its parameters
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Forward:
    """Forward of a segment for a micro-batch; None: for all of them."""

    segment: int
    micro_batch: int | None

    def __str__(self) -> str:
        return f"F{self.segment}" + ("" if self.micro_batch is None else f":{self.micro_batch}")


@dataclass(frozen=True)
class Backward:
    """Backward of a segment for a micro-batch; it starts to sum the gradients of the buckets in
    `sync`."""

    segment: int
    micro_batch: int | None
    sync: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"B{self.segment}" + ("" if self.micro_batch is None else f":{self.micro_batch}")


@dataclass(frozen=True)
class Start:
    """Start of an exchange for a micro-batch, in either direction."""

    exchange: int
    micro_batch: int
    backward: bool

    def __str__(self) -> str:
        name = f"X{self.exchange}:{self.micro_batch}"
        return f"<{name}" if self.backward else f"{name}>"


@dataclass(frozen=True)
class Wait:
    """Wait for an exchange of a micro-batch, in either direction."""

    exchange: int
    micro_batch: int
    backward: bool

    def __str__(self) -> str:
        name = f"W{self.exchange}:{self.micro_batch}"
        return f"<{name}" if self.backward else f"{name}>"


@dataclass(frozen=True)
class Update:
    """Wait for the summed gradients of a bucket, then update its parameters."""

    bucket: int

    def __str__(self) -> str:
        return f"U{self.bucket}"


Step = Forward | Backward | Start | Wait | Update
