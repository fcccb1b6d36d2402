"""Bytes that a worker receives with one message of a step."""

from __future__ import annotations

from parallel.program.program import Program


def received_bytes(program: Program, worker: int, key: tuple[object, ...], itemsize: int) -> int:
    """Return the bytes that `worker` receives with the message `key`; activations have `itemsize`
    bytes per element.

    Keys are those of the runtime: (exchange, micro-batch, direction), where "<" is backward, or ("sum" or
    "gather", bucket). Over all messages and workers, the sum is what all workers send in a step. Messages
    of a bucket that is summed in levels have other keys, and are 0: the program has only their sum.
    """
    match key:
        case (("sum" | "gather") as kind, int(index)):
            bucket = program.buckets[index]
            if worker not in bucket.workers:
                return 0
            out, into = bucket.sums(worker)  # it sends gradients, and receives as many updated weights
            return into * bucket.sum_bytes(itemsize) if kind == "sum" else out * bucket.gather_bytes(itemsize)
        case (int(index), int(micro_batch), way):
            exchange = program.exchanges[index, micro_batch]
            elements = sum(
                t.box.volume
                for t in exchange.transfers
                if t.source != t.target and worker == (t.source if way == "<" else t.target)
            )
            return elements * exchange.itemsize(itemsize)
        case _:
            return 0
