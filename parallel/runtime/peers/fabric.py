"""Lightning Fabric with strategy="ddp", as its documentation converts PyTorch code
(https://lightning.ai/docs/fabric/stable/fundamentals/convert.html)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from parallel.config.ddp import WrappedDdp
from parallel.runtime.peers.momentum import SGDMomentum
from parallel.runtime.peers.peer import Prepared, Setting


@dataclass(frozen=True)
class Fabric(WrappedDdp):
    """Options of Fabric: those of all peers."""

    name: str = "fabric"

    tool: ClassVar[str] = "Fabric"
    packages: ClassVar[Mapping[str, str]] = {"lightning_fabric": "lightning-fabric"}


def fabric(setting: Setting, options: Fabric) -> Prepared:
    """Set up the model and the optimizer with Fabric, which finds the open process group."""
    import lightning_fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    world = setting.world

    class Workers(LightningEnvironment):
        """The workers that run already. Each gives Fabric its own device as the only one."""

        creates_processes_externally = True

        def world_size(self) -> int:
            return world.size

        def global_rank(self) -> int:
            return world.rank

        def local_rank(self) -> int:
            return 0

        def set_world_size(self, size: int) -> None:
            """Fabric counts the devices that it was given."""

        def set_global_rank(self, rank: int) -> None:
            """It is that of the process group."""

    tool = lightning_fabric.Fabric(
        accelerator=world.device.type,
        devices=[world.device.index] if world.device.type == "cuda" else 1,
        strategy=DDPStrategy(cluster_environment=Workers()),
    )
    tool.launch()
    sgd = setting.sgd(setting.model.parameters())
    model, optimizer = tool.setup(setting.model, sgd)

    def backward(loss: Tensor) -> None:
        optimizer.zero_grad()
        tool.backward(loss)

    return Prepared(train=model, backward=backward, step=optimizer.step, sgd=sgd, momentum=SGDMomentum(sgd))
