"""The engine of the peers: each worker has an equal part of the batch and a model of its own, which a
tool keeps equal on all workers.

Model, order of the samples, initial weights, SGD and evaluation are those of the plans. So without
dropout, or with our masks, a peer's losses are those of `single`.

Batch norm uses the statistics of each worker's own samples, as usual with these tools: torch's
SyncBatchNorm runs on GPUs only. With batch norm their training therefore differs from that of the
plans, which use the whole batch's statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.checkpoints.piece import Piece, ReadTensor
from parallel.config.peer import OURS, PeerConfig
from parallel.graph.box import cut
from parallel.program.precision import DTYPES
from parallel.runtime.communication.device_flags import kept_flags
from parallel.runtime.communication.world import World
from parallel.runtime.execution.metrics import sum_metrics
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.instrumentation.clock import Clock
from parallel.runtime.instrumentation.observe import Observer, observe_modules
from parallel.runtime.instrumentation.phases import Phase
from parallel.runtime.peers.dropout import DropoutStep, mask_dropouts
from parallel.runtime.peers.momentum import SGDMomentum
from parallel.runtime.peers.peer import Peer, Prepared, Setting
from parallel.runtime.peers.state import fill, pieces_of
from parallel.runtime.peers.waits import Waits


class PeerEngine:
    """An `Engine` around a tool. On one worker, the model trains without the tool."""

    splits_time = False  # tools wait inside backward, where the clock cannot record it

    def __init__(
        self,
        peer: Peer,
        config: PeerConfig,
        model: nn.Module,
        world: World,
        options: EngineOptions,
        *,
        batch_size: int,
        observer: Observer | None = None,
    ) -> None:
        """`model` has the initial weights and becomes part of this engine."""
        config.check_equal_parts(batch_size, world.size)
        self.clock = Clock(world.device, phases=world.size > 1)
        self._config, self._world = config, world
        self._channels_last = options.channels_last and peer.channels_last
        self._autocast = options.precision == "bf16"
        rows = range(*cut(batch_size, world.size, world.rank))
        self.image_positions, self.label_positions = list(rows), list(rows)
        samples = torch.tensor(rows, dtype=torch.int64, device=world.device)
        ours = config.dropout == OURS
        self._dropout = DropoutStep.first(options.seed, samples, world.rank, ours=ours)
        if ours:
            mask_dropouts(model, self._dropout)
        if observer is not None:
            observe_modules(model, observer, lambda count: samples)
        memory_format = torch.channels_last if self._channels_last else torch.contiguous_format
        model = model.to(world.device, DTYPES[options.precision])
        model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._model = model
        self._buffers = [buffer.clone() for buffer in model.buffers()]
        self._parameter_bytes = sum(p.nbytes for p in model.parameters())
        self._waits = Waits(world.watch, self.clock, config.tool)
        setting = Setting(
            model=model,
            sgd=partial(_sgd, options),
            world=world,
            waits=self._waits,
            precision=options.precision,
            samples=len(rows),
        )
        threads = torch.get_num_threads()
        world.watch.waits((f"set-up of {config.tool}",), -1)
        with kept_flags():  # Accelerate may allow TF32
            self._tool = peer.prepare(setting, config) if world.size > 1 else _alone(setting)
        world.watch.goes_on()
        torch.set_num_threads(threads)  # Accelerate may set its own number
        self._parameters = sum(1 for _ in model.parameters())
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._waits.gradient_computed)
        if not options.compile:  # in a compiled forward, the hook would break the graph
            model.register_forward_pre_hook(self._waits.forward_begins)
        self._train: Callable[[Tensor], Tensor] = self._tool.train
        if options.compile:
            self._train = torch.compile(self._tool.train)
        self._steps = 0

    @property
    def bytes_sent(self) -> int:
        """Bytes of the exchanges that the tool documents (`PeerConfig.volume`): it does not count."""
        share = self._config.volume * (self._world.size - 1) / self._world.size
        return round(self._steps * share * self._parameter_bytes)

    def train_step(self, images: Tensor, labels: Tensor, *, step: int, lr: float) -> Tensor:
        self._dropout.begin(step)
        self._model.train()
        phases = self.clock.phases
        self._waits.forward_called()
        phases.enter(Phase.FORWARD)
        with self._autocasting():
            logits = self._train(images)
        self._world.watch.goes_on()
        loss = F.cross_entropy(logits if logits.dtype.itemsize >= 4 else logits.float(), labels)
        self._waits.expected = self._parameters
        phases.enter(Phase.WAITING)  # after the last gradient, at which `Waits` counts backward
        self._tool.backward(loss)
        phases.enter(Phase.OTHER)
        self._world.watch.goes_on()
        for group in self._tool.sgd.param_groups:
            group["lr"] = lr
        self._tool.step()
        self._steps += 1
        return loss.detach().double() / self._world.size

    def complete(self) -> None:
        """Wait for nothing: a tool's step ends with updated weights, or gathers them in the next forward."""

    @torch.no_grad()
    def evaluate_step(self, images: Tensor, labels: Tensor) -> Tensor:
        self._model.eval()
        with self._autocasting():
            logits = self._model(images)
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        return sum_metrics(logits, labels, F.cross_entropy(logits, labels, reduction="none", ignore_index=-1))

    def pieces(self, kind: str) -> list[Piece]:
        """Return this worker's pieces of a kind.

        Only worker 0 returns buffers: its running statistics are those that DDP hands to the others.
        """
        rank, size = self._world.rank, self._world.size
        if kind == "buffers":
            rank, size = (0, 1) if rank == 0 else (1, 1)
        if rank >= size:
            return []
        return [*pieces_of(kind, self._tensors(kind), rank, size, channels_last=self._channels_last)]

    @torch.no_grad()
    def load(self, read: ReadTensor) -> None:
        for name, parameter in self._model.named_parameters():
            fill(parameter, read("weights", name))
            momentum = torch.empty_like(parameter)
            fill(momentum, read("momentum", name))
            self._tool.momentum.replace(parameter, momentum)
        self._tool.loaded([*self._model.parameters()])
        for name, buffer in self._running_statistics().items():
            buffer.copy_(read("buffers", name))

    def _tensors(self, kind: str) -> dict[str, Tensor]:
        """Return the tensors of a kind, by name."""
        if kind == "buffers":
            return self._running_statistics()
        tensors = {}
        for name, parameter in self._model.named_parameters():
            if kind == "weights":
                found: Tensor | None = parameter
            else:
                found = self._tool.momentum.of(parameter) if kind == "momentum" else parameter.grad
            tensors[name] = torch.zeros_like(parameter) if found is None else found.detach()
        return tensors

    def _running_statistics(self) -> dict[str, Tensor]:
        """Return the buffers that evaluation uses; batches are counted by steps."""
        return {
            name: buffer
            for name, buffer in self._model.named_buffers()
            if not name.endswith("num_batches_tracked")
        }

    def forget_momentum(self) -> None:
        self._tool.momentum.reset()
        for buffer, initial in zip(self._model.buffers(), self._buffers, strict=True):
            buffer.copy_(initial)  # running statistics, which warm-up changed

    def _autocasting(self) -> torch.autocast:
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast)


def _sgd(options: EngineOptions, parameters: Iterable[nn.Parameter], fused: bool = True) -> torch.optim.SGD:
    return torch.optim.SGD(
        parameters, lr=0.0, momentum=options.momentum, weight_decay=options.weight_decay, fused=fused
    )


def _alone(setting: Setting) -> Prepared:
    """Return the model and the optimizer without a tool."""
    sgd = setting.sgd(setting.model.parameters())

    def backward(loss: Tensor) -> None:
        sgd.zero_grad()
        loss.backward()

    return Prepared(train=setting.model, backward=backward, step=sgd.step, sgd=sgd, momentum=SGDMomentum(sgd))
