"""Why a result is as fast as it is: sentences computed from measured times.

T          mean seconds of an epoch; it divides into compute C, exposed communication E,      `Result.time_split`
           data wait D, idle I and a rest, each a mean over the workers
L = B / w  the epoch of linear speedup: the baseline's mean epoch B over w workers            `_against_linear`
T − L      = (C − C_B / w) + (E − E_B / w) + (D − D_B / w) + …: what the parts cost beyond    `_against_linear`
           their share of the baseline's

Which exchange is exposed, and which worker is idle, is read from the measured step (`step_timeline`).
Nothing is concluded from the strategy's name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from parallel.results.formatting import brief_seconds, percent, size
from parallel.results.result import EPOCH_PARTS, Result
from parallel.results.step_timeline import Span, StepTimelines

WORTH = 0.02
"""Share of an epoch below which a part is not mentioned."""
EXPOSED = 0.01
"""Share of the measured step below which its longest exposed message is not mentioned."""
BOUND = 0.10
"""Share of an epoch from which a part other than computing is said to bound a result."""
NAMES = {
    "compute_s": "computing",
    "communication_s": "exposed communication",
    "data_wait_s": "waiting for images",
    "idle_s": "waiting for other workers",
    "other": "time that is not attributed",
}
MESSAGES = (
    (re.compile(r"exchange back (.+)>(.+)"), r"the gradients of the activations from \2 to \1"),
    (re.compile(r"exchange (.+)>(.+)"), r"the activations from \1 to \2"),
    (re.compile(r"sum (.+)"), r"the gradients of \1"),
    (re.compile(r"gather (.+)"), r"the updated weights of \1"),
)
"""Names of messages as sentences have them."""


def why(result: Result, baseline: Result | None, steps: StepTimelines | None) -> str:
    """Return sentences that explain the epoch time of a result; empty if its parts were not
    measured.

    `baseline` is the result that its speedup is measured against.
    """
    parts = result.time_split()
    if parts is None:
        return ""
    whole = sum(parts.values())
    shares = {name: value / whole for name, value in parts.items()}
    sentences = [_bound(shares)]
    if steps is not None and steps.measured:
        sentences += [
            _exposed(steps.measured, shares),
            _idle(steps.measured, shares),
            _hidden(steps.measured),
        ]
    sentences.append(_sent(result))
    if baseline is not None and result.key.workers > 1:
        sentences.append(_against_linear(result, parts, baseline))
        if result.noisy or baseline.noisy:
            sentences.append(
                f"{'It' if result.noisy else 'Its baseline'} ran on a busy machine: see the notes."
            )
    return " ".join(filter(None, sentences))


def exposed_by_name(spans: Sequence[Span]) -> dict[str, float]:
    """Return the seconds of exposed communication by message, summed over the workers, longest
    first. Time in which a worker waits for several messages counts for the one that began first."""
    found: dict[str, float] = defaultdict(float)
    until: dict[int, float] = defaultdict(float)
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.kind == "communication" and not span.hidden:
            start = max(span.start_s, until[span.worker])
            found[message(span.name)] += max(0.0, span.end_s - start)
            until[span.worker] = max(until[span.worker], span.end_s)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def message(name: str) -> str:
    """Return a message's name without its micro-batch, and without the kinds of its parameters."""
    return re.sub(r":\d+$", "", re.sub(r"\.(weight|bias)\b", "", name))


def described(name: str) -> str:
    """Return a message in words: "the gradients of fc6 … fc7"."""
    for pattern, words in MESSAGES:
        if pattern.fullmatch(name):
            ends = pattern.sub(words, name)
            return re.sub(r"(\S+) … \1(?= |$)", r"\1", ends)
    return name


def _bound(shares: Mapping[str, float]) -> str:
    waits = {name: share for name, share in shares.items() if name != "compute_s"}
    most = max(waits, key=lambda name: waits[name])
    if waits[most] < BOUND:
        return f"Bound by computing: {percent(shares['compute_s'], 0)} of an epoch."
    others = [
        f"{NAMES[name]} {percent(share, 0)}"
        for name, share in shares.items()
        if name not in ("compute_s", most) and share >= WORTH
    ]
    rest = "".join(f", {other}" for other in others)
    return (
        f"{NAMES[most].capitalize()} costs {percent(waits[most], 0)} of an epoch; computing takes "
        f"{percent(shares['compute_s'], 0)}{rest}."
    )


def _exposed(spans: Sequence[Span], shares: Mapping[str, float]) -> str:
    by_name = exposed_by_name(spans)
    total, end = sum(by_name.values()), max(span.end_s for span in spans)
    if shares["communication_s"] < WORTH or total <= 0:
        return ""
    name, longest = next(iter(by_name.items()))
    workers = len({span.worker for span in spans})
    received = received_by_a_worker(spans, name)
    bytes_ = f", {size(received)}" if received else ""
    of_it = "" if len(by_name) == 1 else f" ({percent(longest / total, 0)} of its exposed communication)"
    share = longest / workers / end
    if share < EXPOSED:
        return ""
    return f"A worker waits {percent(share, 0)} of the measured step for {described(name)}{bytes_}{of_it}."


def received_by_a_worker(spans: Sequence[Span], name: str) -> int:
    """Return the bytes that a worker receives with a message, of all its micro-batches; of unequal
    workers, the most. 0: not recorded."""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for span in spans:
        if message(span.name) == name:
            found[span.worker][span.name] = span.received
    return max((sum(sizes.values()) for sizes in found.values()), default=0)


def _idle(spans: Sequence[Span], shares: Mapping[str, float]) -> str:
    if shares["idle_s"] < WORTH:
        return ""
    end = max(span.end_s for span in spans)
    idle = {worker: 0.0 for worker in sorted({span.worker for span in spans})}
    for span in spans:
        if span.kind == "idle":
            idle[span.worker] += span.end_s - span.start_s
    most, least = max(idle, key=lambda w: idle[w]), min(idle, key=lambda w: idle[w])
    if idle[most] <= 0 or end <= 0:
        return ""
    if idle[least] >= idle[most] / 2:
        return f"All workers wait alike, up to {percent(idle[most] / end, 0)} of the measured step."
    waits: dict[str, float] = defaultdict(float)
    for span in spans:
        if span.kind == "idle" and span.worker == most:
            waits[message(span.name)] += span.end_s - span.start_s
    name = max(waits, key=lambda n: waits[n])
    target = f", mostly for {described(name)}" if any(p.fullmatch(name) for p, _ in MESSAGES) else ""
    return (
        f"Worker {most} waits longest, {percent(idle[most] / end, 0)} of the measured step{target}; "
        f"worker {least} waits {percent(idle[least] / end, 0)}."
    )


def _hidden(spans: Sequence[Span]) -> str:
    """Say how much of the time in which messages are under way is hidden; several at once count once."""
    hidden = _covered([span for span in spans if span.hidden])
    total = hidden + sum(exposed_by_name(spans).values())
    return f"Computing hides {percent(hidden / total, 0)} of the time of its messages." if hidden > 0 else ""


def _covered(spans: Sequence[Span]) -> float:
    """Return the seconds in which a worker has at least one of the spans, summed over the workers."""
    covered, until = 0.0, defaultdict[int, float](float)
    for span in sorted(spans, key=lambda span: span.start_s):
        covered += max(0.0, span.end_s - max(span.start_s, until[span.worker]))
        until[span.worker] = max(until[span.worker], span.end_s)
    return covered


def _sent(result: Result) -> str:
    workload, sent = result.records[0].workload, result.bytes_per_epoch
    if not sent or not workload.batch_size or not workload.train_images:
        return ""
    steps = workload.train_images // workload.batch_size
    if steps == 0:
        return ""
    return f"Each worker sends {size(sent / steps / result.key.workers)} a step."


def _against_linear(result: Result, parts: Mapping[str, float], baseline: Result) -> str:
    alone = baseline.time_split()
    if alone is None:
        return ""
    workers = result.key.workers
    linear, measured = sum(alone.values()) / workers, sum(parts.values())
    beyond = {name: parts[name] - alone[name] / workers for name in (*EPOCH_PARTS, "other")}
    lost = measured - linear
    saved = [
        f"{NAMES[name]} takes {brief_seconds(-value)} less"
        for name, value in sorted(beyond.items(), key=lambda item: item[1])
        if value <= -WORTH * measured
    ]
    if lost <= 0:
        faster = f"It is {brief_seconds(-lost)} faster than linear speedup ({brief_seconds(linear)})"
        share = f": compared with 1/{workers} of the baseline, {' and '.join(saved)}" if saved else ""
        return f"{faster}{share}."
    causes = [
        f"{NAMES[name]} {brief_seconds(value)}"
        for name, value in sorted(beyond.items(), key=lambda item: -item[1])
        if value >= WORTH * measured
    ]
    sentence = f"Linear speedup would be {brief_seconds(linear)}. Beyond it, it loses {brief_seconds(lost)}"
    sentence += f": {', '.join(causes)}" if causes else ""
    sentence += f", but {' and '.join(saved)}." if saved else "."
    more = beyond["compute_s"] / (alone["compute_s"] / workers) if alone["compute_s"] else 0.0
    if more >= WORTH:
        sentence += f" Each worker computes {percent(more, 0)} longer than 1/{workers} of the baseline."
    return sentence
