"""Traces of a measured step show every instruction of the workers' programs."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from parallel.cli.compose import compose_config
from parallel.config import TrainerConfig
from parallel.graph import trace
from parallel.program import Backward, Forward, Start, Update, Wait
from parallel.program.lowering import lower
from parallel.results import step_timeline
from parallel.runtime.instrumentation.trace import chosen_step
from parallel.strategies import ModelParallel, build_plan
from tests.support.commands import run_module
from tests.support.small_network import SmallConfig, build

FEW = (
    "model=small",
    "data.train_images=24",
    "data.val_images=8",
    "trainer.batch_size=8",
    "trainer.epochs=1",
    "tracker=none",
)
PIPELINE = ("strategy=model_parallel", "strategy.micro_batches=2", "workers=2")
KINDS = {Forward: "forward", Backward: "backward", Start: "start", Wait: "finish", Update: "update"}


def test_a_step_is_traced_as_the_program_has_it(tmp_path: Path) -> None:
    ended = run_module(2, "parallel.train", *PIPELINE, *FEW, "trainer.trace=1", folder=tmp_path)
    assert ended.codes == [0, 0], ended.err
    (path,) = tmp_path.rglob("trace.json")
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["otherData"]["title"] == "step 1, measured"
    bars = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert min(bar["ts"] for bar in bars) == 0 and all(bar["dur"] >= 0 for bar in bars)
    small = SmallConfig()
    graph = trace(build(small, 10), (3, small.image_size, small.image_size))
    program = lower(graph, build_plan(graph, 2, ModelParallel(micro_batches=2)), 8)
    for worker, steps in enumerate(program.steps):
        own = [bar for bar in bars if bar["pid"] == worker]
        kinds = Counter(bar["cat"] for bar in own)
        assert {kind: kinds[kind] for kind in KINDS.values()} == Counter(KINDS[type(step)] for step in steps)
        # Micro-batches: started once, waited for at the end.
        assert kinds["exchange"] == kinds["exchange back"] == 2
        own.sort(key=lambda bar: (float(bar["ts"]), -float(bar["dur"])))
        for stream in {bar["tid"] for bar in own}:
            for before, after in itertools.pairwise([bar for bar in own if bar["tid"] == stream]):
                apart = before["ts"] + before["dur"] <= after["ts"] + 1
                within = after["ts"] + after["dur"] <= before["ts"] + before["dur"] + 1
                assert apart or (within and before["cat"] != "exchange")
    assert {bar["name"] for bar in bars if bar["cat"] == "backward"} == {
        f"backward {segment.ops[-1]} … {segment.ops[0]}:{m}" for segment in program.segments for m in range(2)
    }
    step = step_timeline.read(path.with_name(step_timeline.FILE))
    assert step.predicted == (), "this machine is not calibrated for it"
    assert min(span.start_s for span in step.measured) == 0
    for worker, steps in enumerate(program.steps):
        spans = [span for span in step.measured if span.worker == worker]
        shown = [span for span in spans if not span.hidden]
        for earlier, later in itertools.pairwise(shown):
            assert earlier.end_s <= later.start_s + 1e-9, "a worker does one thing at a time"
        assert {span.name.split()[0] for span in spans if span.kind == "compute"} == {
            KINDS[type(instruction)] for instruction in steps
        }
        assert shown[0].kind == "data" and sum(span.kind == "data" for span in spans) == 1
        blocked = {span.name for span in spans if span.kind in ("idle", "communication")}
        way = "exchange" if worker == 1 else "exchange back"
        assert all(name.startswith(f"{way} ") for name in blocked) and blocked


def test_an_epoch_ends_with_the_gathers_of_its_last_step(tmp_path: Path) -> None:
    """The next step would wait for them, and there is none: the epoch has a single one."""
    ended = run_module(
        2,
        "parallel.train",
        "strategy=data_parallel",
        "workers=2",
        *FEW,
        "data.train_images=8",
        "trainer.trace=0",
        folder=tmp_path,
    )
    assert ended.codes == [0, 0], ended.err
    (path,) = tmp_path.rglob("trace.json")
    bars = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    for worker in range(2):
        kinds = Counter(bar["cat"] for bar in bars if bar["pid"] == worker)
        assert kinds["gather"] == kinds["sum"] > 0


def test_which_step_is_traced() -> None:
    assert chosen_step(False, 100, 3) is None
    assert chosen_step(True, 100, 3) == 10
    assert [chosen_step(True, steps, 1) for steps in (1, 2, 3, 12)] == [0, 0, 1, 10]
    assert [chosen_step(step, 100, 3) for step in (0, 1, 299)] == [0, 1, 299]
    with pytest.raises(ValueError, match="trainer.trace=300 must be a step of the run, which has 300"):
        chosen_step(300, 100, 3)


@pytest.mark.parametrize(("override", "value"), [("true", True), ("1", 1), ("false", False)])
def test_the_command_line_tells_true_from_one(override: str, value: bool | int) -> None:
    trace = compose_config([f"trainer.trace={override}"]).trainer.trace
    assert trace == value and type(trace) is type(value)


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ValueError, match="trainer.trace=-1 must be true, false or the number of a step"):
        TrainerConfig(trace=-1)
    with pytest.raises(ValueError, match="trainer.trace=True needs a plan, and strategy=ddp has none"):
        compose_config(["trainer.trace=true", "strategy=ddp"])
