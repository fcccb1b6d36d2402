"""torch's fully sharded data parallel (FSDP2), as its tutorial and torchtitan use it: `fully_shard` on
every layer with weights, then on the model
(https://docs.pytorch.org/tutorials/intermediate/FSDP_tutorial.html)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from parallel.config.peer import PeerConfig
from parallel.runtime.peers.momentum import SGDMomentum
from parallel.runtime.peers.peer import Prepared, Setting


@dataclass(frozen=True)
class Fsdp2(PeerConfig):
    """Options of FSDP2."""

    name: str = "fsdp2"
    reshard: bool = True
    """Whether a layer's weights are freed after its forward, and gathered again in backward
    (reshard_after_forward)."""

    tool: ClassVar[str] = "FSDP2"

    @property
    def volume(self) -> float:
        return 3.0 if self.reshard else 2.0


def fsdp2(setting: Setting, options: Fsdp2) -> Prepared:
    """Shard the weights over all workers, in the first dim of each."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, world, waits = setting.model, setting.world, setting.waits
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in [*model.modules()][1:]:
        if any(True for _ in layer.parameters(recurse=False)):
            fully_shard(layer, mesh=mesh, reshard_after_forward=options.reshard)
            # FSDP2's own hook, which gathers the weights, is between the two.
            layer.register_forward_pre_hook(waits.for_weights, prepend=True)
            layer.register_forward_pre_hook(waits.have_weights)
    fully_shard(model, mesh=mesh)
    sgd = setting.sgd(model.parameters(), fused=False)  # torch has no fused SGD for sharded tensors

    def backward(loss: Tensor) -> None:
        sgd.zero_grad()
        loss.backward()

    return Prepared(train=model, backward=backward, step=sgd.step, sgd=sgd, momentum=SGDMomentum(sgd))
