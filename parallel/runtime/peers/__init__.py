"""Outside references: other tools that train the same network in data parallel (docs/peers.md).

A new one is a file here, with its options and the function that sets it up, and an entry in `PEERS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from parallel.config import Ddp
from parallel.runtime.peers.accelerate import Accelerate, accelerate
from parallel.runtime.peers.ddp import ddp
from parallel.runtime.peers.deepspeed import DeepSpeed, deepspeed
from parallel.runtime.peers.fabric import Fabric, fabric
from parallel.runtime.peers.fsdp2 import Fsdp2, fsdp2
from parallel.runtime.peers.peer import Peer

__all__ = ["PEERS"]

PEERS: Mapping[str, Peer] = {
    "ddp": Peer(Ddp(), ddp),
    "fabric": Peer(Fabric(), fabric),
    "accelerate": Peer(Accelerate(), accelerate),
    "fsdp2": Peer(Fsdp2(), fsdp2, channels_last=False),
    "deepspeed": Peer(DeepSpeed(), deepspeed, channels_last=False),
}
"""By name of the strategy."""
