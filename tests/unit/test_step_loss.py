"""The loss within an epoch: of all workers, at a bounded rate, read from the device only then."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from parallel.training import step_loss
from parallel.training.late_loss import LateLoss
from parallel.training.progress import Progress
from parallel.training.step_loss import GROWTH, StepLoss, next_interval


class TwoWorkers:
    """Worker 0 of two that have the same part of the loss; counts the sums."""

    rank = 0
    sums = 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sums += 1
        return tensor * torch.tensor([2.0, 1.0], dtype=tensor.dtype)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock, in seconds, to set."""
    clock = [0.0]
    monkeypatch.setattr(step_loss.time, "perf_counter", lambda: clock[0])
    return clock


def test_the_mean_of_all_workers_about_every_thirty_seconds(now: list[float]) -> None:
    world = TwoWorkers()
    losses = StepLoss(world)  # type: ignore[arg-type]
    losses.begin(0)
    total = torch.zeros((), dtype=torch.float64)
    shown = {}
    for step in range(1, 301):  # of one second; the loss of step k is 2k, half of it on each worker
        now[0] += 1.0
        total += step
        mean = losses.after(step, total)
        if mean is not None:
            shown[step] = mean
    assert list(shown)[1:] == list(range(list(shown)[0] + 30, 301, 30)), "every 30 steps of a second"
    steps = sorted(shown)
    for before, step in zip(steps, steps[1:], strict=False):
        assert shown[step] == pytest.approx(sum(2 * k for k in range(before + 1, step + 1)) / (step - before))
    assert world.sums <= len(shown) + 3, "a step without a loss to show needs no sum"


def test_a_short_epoch_has_none(now: list[float]) -> None:
    losses = StepLoss(TwoWorkers())  # type: ignore[arg-type]
    for _ in range(3):
        losses.begin(0)
        for step in range(1, 101):
            now[0] += 0.01
            assert losses.after(step, torch.zeros((), dtype=torch.float64)) is None


def test_the_interval_follows_the_time_of_a_step() -> None:
    assert next_interval(100, 60.0) == 50
    assert next_interval(100, 0.1) == 100 * GROWTH
    assert next_interval(1, 400.0) == 1


def test_where_there_is_no_terminal_the_loss_is_a_line() -> None:
    text = io.StringIO()
    with Progress(2, 300, "ddp", batch_size=32, console=Console(file=text, width=120)) as progress:
        progress.loss(1, 30, 2.25)
    assert text.getvalue() == "ddp  epoch 1/2  step 30/300  loss 2.2500\n"


class Copying:
    """Imitation of an event that a device passes when the test says so."""

    passed = False

    def record(self) -> None:
        Copying.passed = False

    def query(self) -> bool:
        return Copying.passed


def test_the_loss_of_the_bar_is_read_when_the_device_has_computed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [torch.tensor(value, dtype=torch.float64) for value in (3.0, 2.0, 1.0)]
    assert [LateLoss(torch.device("cpu")).read(loss) for loss in losses] == [3.0, 2.0, 1.0]
    monkeypatch.setattr("torch.cuda.Event", Copying)
    monkeypatch.setattr(
        "parallel.training.late_loss.torch.zeros",
        lambda *shape, **_: torch.empty(*shape, dtype=torch.float64),
    )
    late = LateLoss(torch.device("cuda"))
    assert late.read(losses[0]) is None and late.read(losses[1]) is None
    Copying.passed = True
    assert late.read(losses[1]) == 3.0 and late.read(losses[2]) == 3.0
    Copying.passed = True
    assert late.read(losses[2]) == 2.0
