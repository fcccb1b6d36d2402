"""Mutations of the code. Each is a mistake that a change might introduce."""

from __future__ import annotations

from dataclasses import dataclass

OPS = "parallel/graph/ops/"
COMMUNICATION = "parallel/runtime/communication/"
EXECUTION = "parallel/runtime/execution/"
PEERS = "parallel/runtime/peers/"


@dataclass(frozen=True)
class Mutation:
    """A text that occurs exactly once in a file, and its replacement."""

    breaks: str
    """The mistake, in words."""
    file: str
    old: str
    new: str


MUTATIONS = (
    # Waits.
    Mutation(
        "gathered weights are read without waiting",
        EXECUTION + "parameters.py",
        "        for held in self._buckets_of_op[op]:\n            held.finish_gather(self._transport)\n",
        "",
    ),
    Mutation(
        "neighbours' shards of shared weights are not waited for",
        COMMUNICATION + "transport.py",
        "            signal.wait()\n",
        "            pass\n",
    ),
    Mutation(
        "messages of the process group are not waited for",
        COMMUNICATION + "transport.py",
        "                self._wait_for(work, message.key, peer)\n",
        "                pass\n",
    ),
    Mutation(
        "the backward pass does not wait for gradients",
        "parallel/program/lowering.py",
        "                self._emit(Wait(index, m, True))\n",
        "                pass\n",
    ),
    Mutation(
        "the next pass's exchange is not started",
        "parallel/program/lowering.py",
        "                    self._emit(Start(index, m + 1, False))\n",
        "                    pass\n",
    ),
    Mutation(
        "passes read weights before the last pass updated them",
        "parallel/program/schedule.py",
        '1 if pipeline == "passes" else micro_batches',
        "micro_batches",
    ),
    # Halos and padding.
    Mutation(
        "halo one position short",
        OPS + "op.py",
        "(out[1] - 1) * stride - padding + kernel",
        "(out[1] - 1) * stride - padding + kernel - 1",
    ),
    Mutation(
        "halo ignores the padding",
        OPS + "op.py",
        "start, stop = out[0] * stride - padding,",
        "start, stop = out[0] * stride,",
    ),
    Mutation(
        "convolution pads the wrong sides",
        OPS + "conv.py",
        "F.pad(x, (left, right, top, bottom)), (0, 0)",
        "F.pad(x, (right, left, bottom, top)), (0, 0)",
    ),
    Mutation("pooling pads with zeros", OPS + "pool.py", 'value=float("-inf")', "value=0.0"),
    Mutation(
        "normalisation's halo one channel short",
        OPS + "norm.py",
        "min(start, self.size // 2)",
        "min(start, self.size // 2 - 1)",
    ),
    Mutation(
        "normalisation keeps the wrong channels of its halo",
        OPS + "norm.py",
        "y[:, before : y.shape[1] - after]",
        "y[:, after : y.shape[1] - before]",
    ),
    # Parts, shards and partial sums.
    Mutation(
        "a shard misses its last element",
        "parallel/program/bucket.py",
        "return cut(self.size, len(self.workers), index)",
        "start, stop = cut(self.size, len(self.workers), index)\n        return start, max(start, stop - 1)",
    ),
    Mutation(
        "every partial sum of a linear layer adds the bias",
        OPS + "linear.py",
        "if self.bias and k[0] == 0:",
        "if self.bias:",
    ),
    Mutation(
        "every partial sum of a convolution adds the bias",
        OPS + "conv.py",
        "if self.bias and k[0] == 0:",
        "if self.bias:",
    ),
    Mutation(
        "labels of another worker's rows",
        EXECUTION + "prepared.py",
        "self.label_positions += samples",
        "self.label_positions += samples[::-1]",
    ),
    Mutation(
        "received pieces replace each other instead of adding up",
        COMMUNICATION + "exchange.py",
        "total[box.within(wants)] += tensor",
        "total[box.within(wants)] = tensor",
    ),
    Mutation(
        "overlaps do not add up in the backward pass",
        COMMUNICATION + "exchange.py",
        "        adds or transposed,\n",
        "        adds,\n",
    ),
    # Gradients and the optimizer.
    Mutation(
        "the loss is summed, not averaged",
        EXECUTION + "step.py",
        "torch.full_like(tensor, p.program.loss_scale)",
        "torch.ones_like(tensor)",
    ),
    Mutation(
        "passes that update have the loss scale of the batch",
        "parallel/program/program.py",
        "return passes / self.batch_size",
        "return 1 / self.batch_size",
    ),
    Mutation(
        "gradients of passes count as often as there are passes",
        EXECUTION + "step.py",
        "gradient = gradient / p.program.plan.micro_batches",
        "pass",
    ),
    Mutation(
        "the last reader's gradient replaces the others'",
        EXECUTION + "step.py",
        "self._gradients[value, m] = self._gradients[value, m] + gradient",
        "self._gradients[value, m] = gradient",
    ),
    Mutation(
        "the other workers' gradients are not added",
        EXECUTION + "held_bucket.py",
        "            self.gradient.add_(received)\n",
        "            pass\n",
    ),
    Mutation(
        "gradients are not cleared after the update",
        EXECUTION + "parameters.py",
        "        held.clear()\n",
        "",
    ),
    Mutation(
        "momentum is not kept",
        EXECUTION + "parameters.py",
        "[held.momentum for held in buckets],",
        "[held.momentum.clone() for held in buckets],",
    ),
    Mutation(
        "momentum is left out", EXECUTION + "parameters.py", "momentum=self._momentum,", "momentum=0.0,"
    ),
    Mutation(
        "weight decay is dropped",
        EXECUTION + "parameters.py",
        "weight_decay=self._weight_decay",
        "weight_decay=0.0",
    ),
    # Dropout.
    Mutation(
        "dropout masks by the row on the worker",
        OPS + "dropout.py",
        "_mix(_mix(key + op) + samples)",
        "_mix(_mix(key + op) + torch.arange(len(samples)))",
    ),
    Mutation(
        "dropout masks by the position in the part",
        OPS + "dropout.py",
        "torch.arange(start, stop,",
        "torch.arange(0, stop - start,",
    ),
    Mutation(
        "the same dropout masks in every step",
        OPS + "dropout.py",
        "_mix(_mix(seed) + step)",
        "_mix(_mix(seed))",
    ),
    Mutation(
        "evaluation with dropout on",
        OPS + "elementwise.py",
        "if not context.training or self.p == 0.0:",
        "if self.p == 0.0:",
    ),
    # Batch normalisation.
    Mutation("statistics of a worker's part only", OPS + "batch_norm.py", 'return "nhw"', 'return ""'),
    Mutation(
        "evaluation normalises with the batch's statistics",
        OPS + "batch_norm.py",
        "*running, weight, bias, context.training,",
        "*(running if context.training else (None, None)), weight, bias, True,",
    ),
    Mutation(
        "the running variance is the biased one",
        OPS + "batch_norm.py",
        "unbiased = var * (count / (count - 1))",
        "unbiased = var",
    ),
    Mutation(
        "running statistics with the wrong momentum",
        OPS + "batch_norm.py",
        ".dtype), momentum)",
        ".dtype), 1 - momentum)",
    ),
    Mutation(
        "running statistics of whole channels with the wrong momentum",
        OPS + "batch_norm.py",
        "self.momentum, self.eps)",
        "1 - self.momentum, self.eps)",
    ),
    Mutation(
        "the variance gives no gradient",
        OPS + "batch_norm.py",
        "-0.5 * weight * scale",
        "0.0 * weight * scale",
    ),
    # Evaluation.
    Mutation("top-5 of the best four", EXECUTION + "metrics.py", "topk(min(5,", "topk(min(4,"),
    Mutation("top-1 is the second best", EXECUTION + "metrics.py", "top5[:, 0]", "top5[:, 1]"),
    Mutation(
        "rows that only fill the batch are counted",
        EXECUTION + "metrics.py",
        "(labels >= 0)",
        "(labels >= -1)",
    ),
    Mutation("DDP evaluates with dropout on", PEERS + "engine.py", "        self._model.eval()\n", ""),
)
