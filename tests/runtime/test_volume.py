"""Costs of a plan for a worker: bytes against closed forms, multiply-adds, memory against that of a
process."""

from __future__ import annotations

import json
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from parallel.cli.compose import compose_config
from parallel.config import ClusterConfig, StrategyConfig
from parallel.data import host_memory as host
from parallel.graph import Graph
from parallel.graph.configured import model_graph
from parallel.models import build_model
from parallel.plans import read_plan
from parallel.program import Program
from parallel.program.listing import step_rows
from parallel.program.lowering import lower
from parallel.program.required_memory import Memory, memory_of, refuse_too_large
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.execution.available_memory import available_memory
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, Single, build_plan
from parallel.training import engines
from parallel.training.job import prepare
from tests.support.commands import Run
from tests.support.options import model_options

CONV, FULLY_CONNECTED = 2_469_696, 58_631_144
GATHERED = 9216 + 4096 + 4096
"""Features per sample that the fully connected layers gather."""
CLASSES = 1000
FACTOR = 2.5
"""Maximum ratio of the estimated memory to that of a process."""
PLANS: dict[str, StrategyConfig] = {
    "data_parallel": DataParallel(),
    "tensor": ModelParallel(scheme="tensor"),
    "pipeline": ModelParallel(micro_batches=4),
    "owt-a": OneWeirdTrick(),
    "owt-b": OneWeirdTrick(scheme="b"),
    "owt-c": OneWeirdTrick(scheme="c"),
    "owt-pass": OneWeirdTrick(scheme="c", update="pass"),
}


def graph_of(name: str = "alexnet", image_size: int = 64, variant: str | None = None) -> Graph:
    return model_graph(model_options(name, variant, image_size), CLASSES)


OWT, RESNET = graph_of(), graph_of("resnet18")


def program_of(workers: int, batch: int, strategy: StrategyConfig, graph: Graph = OWT) -> Program:
    return lower(graph, build_plan(graph, workers, strategy), batch)


# Bytes.


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_data_parallel_beside_its_closed_form(workers: int) -> None:
    """Bytes = 2 (N − 1) / N × 4 bytes × weights, half for gradient sums and half for weights; no
    exchanges."""
    program = program_of(workers, 12, DataParallel())
    expected = 2 * (workers - 1) / workers * (CONV + FULLY_CONNECTED) * 4
    for worker in range(workers):
        sent = program.sent(worker, 4)
        assert sent.forward == sent.backward == 0
        assert sent.total == pytest.approx(expected, rel=1e-6)
        assert sent.sums == pytest.approx(expected / 2, rel=1e-6) and sent.gathers == pytest.approx(
            sent.sums, rel=1e-6
        )


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_one_weird_trick_beside_its_closed_form(workers: int) -> None:
    """2 (N − 1) / N × conv weights; activations of (N − 1) · b samples each way; each worker has
    1/N of the logits."""
    local = 16
    program = program_of(workers, local * workers, OneWeirdTrick())
    weights = 2 * (workers - 1) / workers * CONV * 4
    activations = (workers - 1) * local * GATHERED * 4
    logits = (workers - 1) * local * CLASSES // workers * 4
    for worker in range(workers):
        sent = program.sent(worker, 4)
        assert sent.sums + sent.gathers == pytest.approx(weights, rel=1e-4)
        assert sent.forward == sent.backward == activations + logits
    exchanged = {
        e.name: sum(4 * t.box.volume for t in e.transfers if t.source != t.target)
        for e in program.exchanges.values()
    }
    assert exchanged.pop("fc8>loss") == workers * logits
    assert sum(exchanged.values()) == workers * activations


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("graph", "name"),
    [*((OWT, name) for name in PLANS), *((RESNET, name) for name in ("data_parallel", "tensor", "owt-a"))],
    ids=[*PLANS, "resnet18 data_parallel", "resnet18 tensor", "resnet18 owt-a"],
)
def test_the_steps_send_what_the_program_sends_and_what_is_sent_is_received(
    graph: Graph, name: str, workers: int, itemsize: int
) -> None:
    program = program_of(workers, 24, PLANS[name], graph)
    rows = [step_rows(program, worker, itemsize) for worker in range(workers)]
    assert [sum(row.sent for row in of_worker) for of_worker in rows] == [
        program.bytes_sent(worker, itemsize) for worker in range(workers)
    ]
    received = sum(row.received for of_worker in rows for row in of_worker)
    assert received == sum(row.sent for of_worker in rows for row in of_worker)
    assert [[row.step for row in of_worker] for of_worker in rows] == [
        list(map(str, s)) for s in program.steps
    ]


# Compute.


def test_multiply_adds_are_three_forwards_less_the_images_gradient_however_split() -> None:
    first = OWT["conv1"].shape[1] * OWT["conv1"].shape[2] * 64 * 3 * 11 * 11
    expected = 24 * (3 * OWT.multiply_adds - first)
    for workers in (1, 2, 3):
        for options in PLANS.values():
            program = program_of(workers, 24, options)
            assert sum(program.multiply_adds(worker) for worker in range(workers)) == expected


# Memory.


def test_parameters_and_momentum() -> None:
    program = program_of(2, 8, DataParallel())
    memory = [memory_of(program, worker, "fp32") for worker in range(2)]
    assert [m.weights for m in memory] == [4 * (CONV + FULLY_CONNECTED)] * 2
    assert sum(m.momentum for m in memory) == 4 * (CONV + FULLY_CONNECTED)  # a shard each
    assert [m.received for m in memory] == [m.momentum for m in memory]  # from one peer
    assert memory_of(program, 0, "bf16").weights == 4 * (
        CONV + FULLY_CONNECTED
    )  # rounded, and half of it not
    alone = program_of(1, 8, Single())
    assert memory_of(alone, 0, "bf16").weights == 6 * (CONV + FULLY_CONNECTED)  # autocast keeps copies
    assert memory_of(program, 0, "fp64").weights == 8 * (CONV + FULLY_CONNECTED)
    assert memory[0].total == sum(astuple(memory[0]))


def test_activations_follow_the_schedule() -> None:
    """The first stage holds all micro-batches with fill-drain; with 1F1B, as many as the pipeline
    has stages."""
    held = {}
    for pipeline in ("fill_drain", "1f1b"):
        program = program_of(2, 32, ModelParallel(micro_batches=8, pipeline=pipeline))
        held[pipeline] = [memory_of(program, worker, "fp32").activations for worker in range(2)]
    assert held["fill_drain"][0] == 4 * held["1f1b"][0]
    whole = memory_of(program_of(2, 32, ModelParallel()), 0, "fp32").activations
    assert held["fill_drain"][0] == whole


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("workers", [1, 3])
def test_activations_and_messages_grow_with_the_batch_and_with_the_precision(name: str, workers: int) -> None:
    small, large = (program_of(workers, batch, PLANS[name]) for batch in (36, 72))
    for worker in range(workers):
        of_small, of_large = memory_of(small, worker, "fp32"), memory_of(large, worker, "fp32")
        assert 0 < 2 * of_small.activations == of_large.activations
        assert 2 * of_small.messages == of_large.messages
        assert (of_large.messages > 0) == (workers > 1 and name != "data_parallel")
        doubled = memory_of(small, worker, "fp64")
        # Poolings keep int64 indices.
        assert of_small.activations < doubled.activations <= 2 * of_small.activations


def test_messages_keep_what_is_sent_and_let_go_of_what_is_used() -> None:
    """Sent messages are kept until the end of the step; received ones until their backward or their
    producer's."""
    program = program_of(2, 64, ModelParallel(micro_batches=8))
    message = 4 * program.exchanges[0, 0].holds[0].volume
    assert len(program.exchanges) == 8
    assert memory_of(program, 1, "fp32").messages == 8 * message
    # A gradient is received in pieces, which are joined for the backward that follows immediately.
    assert memory_of(program, 0, "fp32").messages == (8 + 2) * message


def test_ops_keep_more_than_their_output_where_backward_needs_more() -> None:
    split = "workers: 2\nops:\n  conv1: {h: 2, on: [0, 1]}\n  conv2: {n: 2, on: [0, 1]}\n"
    program = lower(OWT, read_plan(split, OWT), 4)
    part = program.part("conv1", 0, 0)
    assert part is not None
    rows = program.graph["conv1"].needs(part)[0].shape[2]
    padded = 4 * 3 * (rows + 2) * (64 + 3)  # the padding that is read: two rows above, three columns
    assert OWT["conv1"].kept_bytes(part, 4) == 4 * (part.box.volume + padded)
    pool, drop = program.part("pool5", 0, 0), program.part("drop6", 0, 0)
    assert pool is not None and drop is not None
    assert OWT["pool5"].kept_bytes(pool, 4) == (4 + 8) * pool.box.volume
    assert OWT["drop6"].kept_bytes(drop, 4) == 2 * 4 * drop.box.volume


def measure(
    strategy: StrategyConfig, name: str, variant: str | None, image_size: int, batch: int
) -> tuple[int, Memory]:
    """Return the increase of this process's peak resident memory during training, and the
    estimate."""
    model = model_options(name, variant, image_size)
    with open_world(ClusterConfig(device="cpu")) as world:
        program = program_of(1, batch, strategy, graph_of(name, image_size, variant))
        torch.nn.functional.conv2d(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))
        # Reset the peak: it includes the memory at the fork from a parent that may be large.
        Path("/proc/self/clear_refs").write_text("5")
        base = _resident("VmRSS")
        engine = Runtime(program, build_model(model, CLASSES, 0), world, EngineOptions(0, momentum=0.9))
        images, labels = torch.randn(batch, 3, image_size, image_size), torch.zeros(batch, dtype=torch.int64)
        for step in range(2):
            engine.train_step(images, labels, step=step, lr=0.01)
    return _resident("VmHWM") - base, memory_of(program, world.rank, "fp32")


def _resident(what: str) -> int:
    """Return the bytes of VmRSS (resident memory now) or VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("model", ["alexnet original", "resnet18"])  # every kind of op but concat
def test_a_process_takes_no_more_than_the_estimate_and_not_much_less(run: Run, model: str) -> None:
    done = run("tests.runtime.test_volume", "64", "64", *model.split())
    assert done.returncode == 0, done.stderr
    taken, estimate = json.loads(done.stdout)
    assert taken <= estimate <= FACTOR * taken


def test_a_plan_too_large_for_memory_is_refused() -> None:
    program = program_of(2, 8, OneWeirdTrick())
    need = [memory_of(program, worker, "fp32").total for worker in range(2)]
    refuse_too_large(program, "fp32", need)
    refuse_too_large(program, "fp32", [None, None])
    with pytest.raises(
        ValueError,
        match=r"^the plan is too large for worker 1: it needs about 0\.\d\d GB of memory "
        r"with trainer\.batch_size=8, and 0\.10 GB are free$",
    ):
        refuse_too_large(program, "fp32", [need[0], 100_000_000])


def test_the_trainer_refuses_before_it_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(compose_config([]), verbose=False)
    monkeypatch.setattr(engines, "available_memory", lambda device: 10_000_000)
    monkeypatch.setattr(engines, "build_model", lambda *_: pytest.fail("the model was built"))
    with pytest.raises(
        ValueError, match=r"too large for worker 0: it needs about 1\.\d\d GB .* 0\.01 GB are free"
    ):
        engines.open_engine(job, World(0, 1, torch.device("cpu"), "none"))


def test_available_memory_is_shared_by_the_workers_of_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000 kB\nMemFree:  100 kB\nMemAvailable:    8000 kB\n")
    monkeypatch.setattr(host, "MEMINFO", meminfo)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(torch.device("cpu")) == 2000 * 1024
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert available_memory(torch.device("cpu")) == 8000 * 1024
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "none")
    assert available_memory(torch.device("cpu")) is None


@pytest.mark.parametrize(
    "own, files, left",
    [
        ("0::/a/b\n", {"a/b": ("memory.max", "max"), "a": ("memory.max", "9000")}, 9000 - 4000 + 500),
        ("0::/a/b\n", {"a/b": ("memory.max", "5000"), "a": ("memory.max", "9000")}, 5000 - 4000 + 500),
        ("0::/\n", {".": ("memory.max", "3000")}, 0),
        ("1:cpu:/x\n2:memory:/elsewhere\n", {"memory": ("memory.limit_in_bytes", "7000")}, 7000 - 4000 + 500),
        ("0::/a/b\n", {"a": ("memory.max", str(2**62))}, 8000 * 1024),
        ("1:cpu:/x\n", {}, 8000 * 1024),
    ],
)
def test_available_memory_is_what_control_groups_leave(
    own: str, files: dict[str, tuple[str, str]], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (tmp_path / "own").write_text(own)
    for folder, (name, limit) in files.items():
        (tmp_path / "groups" / folder).mkdir(parents=True, exist_ok=True)
        first = name == "memory.max"
        (tmp_path / "groups" / folder / name).write_text(f"{limit}\n")
        (tmp_path / "groups" / folder / ("memory.current" if first else "memory.usage_in_bytes")).write_text(
            "4000\n"
        )
        (tmp_path / "groups" / folder / "memory.stat").write_text(
            f"anon 3000\n{'inactive_file' if first else 'total_inactive_file'} 500\n"
        )
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(host, "GROUPS", tmp_path / "groups")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert available_memory(torch.device("cpu")) == left


if __name__ == "__main__":
    side, images_per_step, network, *named_variant = sys.argv[1:]
    took, expected_memory = measure(
        Single(), network, named_variant[0] if named_variant else None, int(side), int(images_per_step)
    )
    print(json.dumps([took, expected_memory.total]))
