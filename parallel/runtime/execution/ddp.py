"""torch's DistributedDataParallel, the outside reference for the data-parallel plan.

It is set up for speed as its documentation advises: gradients as views of the buckets, a static
graph, a fused optimizer. Only the dropout layers are replaced, so that they use the same masks as
every strategy and the loss curves agree.

Batch norm uses the statistics of each worker's own samples, as usual with DDP: torch's
SyncBatchNorm runs on GPUs only. With batch norm its training therefore differs from that of the
plans, which use the whole batch's statistics.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parallel.checkpoints.piece import Piece, Place, ReadTensor
from parallel.config import require
from parallel.graph.box import Box, cut
from parallel.graph.memory_order import in_memory_order
from parallel.graph.ops.dropout import dropout_mask, step_key
from parallel.program.precision import DTYPES
from parallel.runtime.communication.world import World
from parallel.runtime.execution.metrics import sum_metrics
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.instrumentation.clock import Clock
from parallel.runtime.instrumentation.observe import Observer, observe_modules


@dataclass
class _Step:
    """Step and samples that the dropout masks depend on."""

    key: Tensor
    samples: Tensor


class _Dropout(nn.Module):
    def __init__(self, name: str, p: float, step: _Step) -> None:
        super().__init__()
        self.op, self.p, self.step = zlib.crc32(name.encode()), p, step

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        shape = tuple(x.shape)
        return x * dropout_mask(
            key=self.step.key,
            op=self.op,
            samples=self.step.samples,
            box=Box.whole(shape),
            shape=shape[1:],
            p=self.p,
            dtype=x.dtype,
        )


def check_ddp_batch(batch_size: int, workers: int) -> None:
    """Raise `ValueError` if the batch does not divide equally: DDP averages the workers' means."""
    require(
        batch_size % workers == 0,
        "trainer.batch_size",
        batch_size,
        f"must be a multiple of workers={workers} for strategy=ddp, which averages equal parts",
    )


class DDPEngine:
    """An `Engine` around DDP: each worker has the whole model and an equal part of the batch."""

    splits_time = False  # DDP waits inside backward, where the clock cannot record it

    def __init__(
        self,
        model: nn.Module,
        world: World,
        options: EngineOptions,
        *,
        batch_size: int,
        bucket_mb: float,
        observer: Observer | None = None,
    ) -> None:
        """`model` has the initial weights and becomes part of this engine."""
        check_ddp_batch(batch_size, world.size)
        self.clock = Clock(world.device)
        self._world, self._seed = world, options.seed
        self._channels_last = options.channels_last
        self._autocast = options.precision == "bf16"
        rows = range(*cut(batch_size, world.size, world.rank))
        self.image_positions, self.label_positions = list(rows), list(rows)
        samples = torch.tensor(rows, dtype=torch.int64, device=world.device)
        self._step = _Step(step_key(options.seed, 0, world.device), samples)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Dropout):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, _Dropout(name, layer.p, self._step))
        if observer is not None:
            observe_modules(model, observer, lambda count: self._step.samples)
        memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
        model = model.to(world.device, DTYPES[options.precision])
        model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._model: nn.Module = model
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            self._model = DistributedDataParallel(
                model,
                device_ids=ids,
                gradient_as_bucket_view=True,
                static_graph=True,
                bucket_cap_mb=bucket_mb,
            )
        self._plain = model
        if options.compile:
            self._model = torch.compile(self._model)  # type: ignore[assignment]
        self._sgd = torch.optim.SGD(
            model.parameters(),
            lr=0.0,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self._buffers = [buffer.clone() for buffer in model.buffers()]
        self._parameter_bytes = sum(p.nbytes for p in model.parameters())
        self._steps = 0

    @property
    def bytes_sent(self) -> int:
        """Bytes of ring all-reduces, 2(K−1)/K of the gradients per step: DDP does not count."""
        share = 2 * (self._world.size - 1) / self._world.size
        return round(self._steps * share * self._parameter_bytes)

    def train_step(self, images: Tensor, labels: Tensor, *, step: int, lr: float) -> Tensor:
        self._step.key = step_key(self._seed, step, self._world.device)
        self._model.train()
        with self._autocasting():
            logits = self._model(images)
        loss = F.cross_entropy(logits if logits.dtype.itemsize >= 4 else logits.float(), labels)
        self._sgd.zero_grad()
        self._world.watch.waits(("gradients inside DDP",), -1)  # the watch cannot see its collectives
        loss.backward()
        self._world.watch.goes_on()
        for group in self._sgd.param_groups:
            group["lr"] = lr
        self._sgd.step()
        self._steps += 1
        return loss.detach().double() / self._world.size

    @torch.no_grad()
    def evaluate_step(self, images: Tensor, labels: Tensor) -> Tensor:
        self._model.eval()
        with self._autocasting():
            logits = self._plain(images)
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        return sum_metrics(logits, labels, F.cross_entropy(logits, labels, reduction="none", ignore_index=-1))

    def pieces(self, kind: str) -> list[Piece]:
        """Return an equal part of the elements of a kind: all workers hold all of them.

        Only worker 0 returns buffers: its running statistics are those that DDP hands to the others.
        """
        tensors = self._tensors(kind)
        rank, size = self._world.rank, self._world.size
        if kind == "buffers":
            rank, size = (0, 1) if rank == 0 else (1, 1)
        if rank >= size:
            return []
        total = sum(tensor.numel() for tensor in tensors.values())
        begin, (start, stop) = 0, cut(total, size, rank)
        pieces: list[Piece] = []
        for name, tensor in tensors.items():
            first, last = max(start - begin, 0), min(stop - begin, tensor.numel())
            begin += tensor.numel()
            if first < last:
                shape = tuple(tensor.shape)
                place = Place(kind, name, shape, Box.whole(shape).spans, self._channels_last, first, last)
                flat = in_memory_order(tensor, self._channels_last).reshape(-1)
                pieces.append(Piece(place, flat[first:last]))
        return pieces

    @torch.no_grad()
    def load(self, read: ReadTensor) -> None:
        for name, parameter in self._plain.named_parameters():
            parameter.copy_(read("weights", name))
            momentum = torch.empty_like(parameter).copy_(read("momentum", name))
            self._sgd.state[parameter]["momentum_buffer"] = momentum
        for name, buffer in self._running_statistics().items():
            buffer.copy_(read("buffers", name))

    def _tensors(self, kind: str) -> dict[str, Tensor]:
        """Return the whole tensors of a kind, by name."""
        if kind == "buffers":
            return self._running_statistics()
        tensors = {}
        for name, parameter in self._plain.named_parameters():
            found = {
                "weights": parameter,
                "momentum": self._sgd.state.get(parameter, {}).get("momentum_buffer"),
                "gradients": parameter.grad,
            }[kind]
            tensors[name] = torch.zeros_like(parameter) if found is None else found.detach()
        return tensors

    def _running_statistics(self) -> dict[str, Tensor]:
        """Return the buffers that evaluation uses; batches are counted by steps."""
        return {
            name: buffer
            for name, buffer in self._plain.named_buffers()
            if not name.endswith("num_batches_tracked")
        }

    def forget_momentum(self) -> None:
        self._sgd.state.clear()
        for buffer, initial in zip(self._plain.buffers(), self._buffers, strict=True):
            buffer.copy_(initial)  # running statistics, which warm-up changed

    def _autocasting(self) -> torch.autocast:
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast)
