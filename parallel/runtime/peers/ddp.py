"""torch's DistributedDataParallel, set up for speed as its documentation advises: gradients as views
of the buckets, a static graph, a fused optimizer."""

from __future__ import annotations

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from parallel.config import Ddp
from parallel.runtime.peers.momentum import SGDMomentum
from parallel.runtime.peers.peer import Prepared, Setting


def ddp(setting: Setting, options: Ddp) -> Prepared:
    """Wrap the model in DDP."""
    device = setting.world.device
    wrapped = DistributedDataParallel(
        setting.model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=True,
        bucket_cap_mb=options.bucket_mb,
    )
    sgd = setting.sgd(setting.model.parameters())

    def backward(loss: Tensor) -> None:
        sgd.zero_grad()
        loss.backward()

    return Prepared(train=wrapped, backward=backward, step=sgd.step, sgd=sgd, momentum=SGDMomentum(sgd))
