"""Programs: a plan lowered to a list of steps per worker, backward included; their order, bytes and
memory."""

from __future__ import annotations

from parallel.program.bucket import Bucket
from parallel.program.exchange import Exchange, Transfer
from parallel.program.lowering import BUCKET_BYTES, lower
from parallel.program.program import Program, Segment, Sent
from parallel.program.steps import Backward, Forward, Start, Step, Update, Wait

__all__ = [
    "BUCKET_BYTES",
    "Backward",
    "Bucket",
    "Exchange",
    "Forward",
    "Program",
    "Segment",
    "Sent",
    "Start",
    "Step",
    "Transfer",
    "Update",
    "Wait",
    "lower",
]
