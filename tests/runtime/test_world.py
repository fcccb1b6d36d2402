"""A world sets the process up, and leaves it as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallel.config.cluster import ClusterConfig
from parallel.runtime.communication import world as world_module
from parallel.runtime.communication.gathering import _INSIDE
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.runtime.failure.errors import DeviceFailed, RunEnded
from tests.support.workers import Workers


def flushes_denormals() -> bool:
    """Return whether a denormal result becomes zero."""
    return bool((torch.tensor([1e-308], dtype=torch.float64) * 1e-3 == 0).all())


def test_denormals_are_flushed_in_the_world_alone() -> None:
    with open_world(ClusterConfig(device="cpu", threads=torch.get_num_threads())):
        assert flushes_denormals()
    assert not flushes_denormals()


@pytest.mark.parametrize("before", [False, True])
def test_cudnn_times_its_algorithms_in_the_world_alone(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with pytest.raises(KeyError), open_world(ClusterConfig(device="cpu", threads=torch.get_num_threads())):
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark is before


def test_an_error_of_the_device_ends_a_single_worker_with_a_sentence() -> None:
    with (
        pytest.raises(DeviceFailed, match="^worker 0 failed in step 3: CUDA error: uncorrectable ECC error$"),
        open_world(ClusterConfig(device="cpu", threads=torch.get_num_threads())) as world,
    ):
        world.watch.at("step 3")
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error\nSearch for it")


def from_first() -> tuple[Any, list[str], str]:
    """Return what worker 0 makes, which workers were asked to make it, and the error of one that fails."""
    asked = []

    def made() -> Any:
        asked.append("made")
        return None, ("a", 1.5)

    def failing() -> Any:
        asked.append("failing")
        raise UnicodeError("cluster.file=x is no text")

    with open_world(ClusterConfig(device="cpu")) as world:
        value = world.from_first(made)
        with pytest.raises(ValueError) as caught:
            world.from_first(failing)
    return value, asked, str(caught.value)


def test_worker_0_decides_and_its_error_is_raised_on_all(workers: Workers) -> None:
    results = workers.run(2, from_first)
    assert [value for value, _, _ in results] == [(None, ("a", 1.5))] * 2
    assert [asked for _, asked, _ in results] == [["made", "failing"], []]
    assert [error for _, _, error in results] == ["cluster.file=x is no text"] * 2


def gathered() -> list[Any]:
    """Return what values of several lengths, another on each worker, become."""
    results: list[Any] = []
    with open_world(ClusterConfig(device="cpu")) as world:
        for length in (0, 1, _INSIDE - 100, _INSIDE, 10**5):
            own = (world.rank, "x" * length * world.rank, torch.full((length,), world.rank))
            for values in (world.gather(own), world.gather_to_first(own)):
                assert all(len(text) == length * rank for rank, text, _ in values)
                assert all(len(tensor) == length and (tensor == rank).all() for rank, _, tensor in values)
                results.append([rank for rank, _, _ in values])
    return results


def test_values_of_any_length_are_gathered_by_rank(workers: Workers) -> None:
    first, second = workers.run(2, gathered)
    assert first == [[0, 1]] * 10
    assert second == [[0, 1], []] * 5


def test_bytes_that_are_no_value_end_the_run_and_name_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "gather_bytes", lambda own, *_: [own, b"garbage"])
    world = World(0, 2, torch.device("cpu"), "gloo")
    with pytest.raises(RunEnded, match="worker 1 sent a message that can't be read: a header of"):
        world.gather("x")
