"""`python -m parallel.verify` from its command line, with AlexNet: it passes what is right, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from parallel import verify
from parallel.config import Config
from parallel.verify import TOLERANCE, Difference, main
from tests.conftest import Run


def test_what_is_right_is_equal(run: Run, tmp_path: Path) -> None:
    ended = run("parallel.verify", "strategy=one_weird_trick", "strategy.scheme=c", "workers=2", "steps=1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"equal: the bound is {TOLERANCE:.0e}" in ended.stdout
    shown = {line.split()[0]: float(line.split()[1]) for line in ended.stdout.splitlines()
             if line.split()[0] in ("losses", "gradients", "weights")}
    assert set(shown) == {"losses", "gradients", "weights"}
    assert all(0 <= value <= TOLERANCE for value in shown.values()) and shown["gradients"] > 0, "it did compare"
    assert list(tmp_path.iterdir()) == [], "no run directory"


def test_gradients_of_rounding_alone_are_no_difference_and_small_ones_are() -> None:
    """A bias before batch normalisation has no gradient; another may have a small one."""
    whole = {"fc.weight": torch.full((3,), 2.0, dtype=torch.float64)}
    for small, ours, equal in ((3e-17, -5e-17, True), (0.0, 0.0, True), (1e-6, 1.1e-6, False), (1e-6, 1e-6, True)):
        theirs = {**whole, "conv.bias": torch.tensor([small], dtype=torch.float64)}
        found = {("fc", "weight"): whole["fc.weight"], ("conv", "bias"): torch.tensor([ours], dtype=torch.float64)}
        assert (verify.largest(found, theirs)[0] <= TOLERANCE) is equal, (small, ours)


@pytest.mark.parametrize("broken", [
    Difference(2e-10, 0.0, 0.0, "fc6.weight"), Difference(0.0, 1.0, 0.0, "fc6.weight"),
    Difference(0.0, 0.0, 2e-10, "fc6.weight"), Difference(0.0, math.nan, 0.0, "fc6.weight"),
    Difference(math.inf, 0.0, 0.0, "fc6.weight")])
def test_any_difference_ends_with_1(broken: Difference, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    def found(config: Config, steps: int, batch_size: int | None = None) -> Difference:
        return broken

    monkeypatch.setattr(verify, "verify", found)
    assert main(["strategy=data_parallel", "workers=2"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT" in out and "worst at  fc6.weight" in out


def test_the_command_line_reaches_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Config, int, int | None]] = []

    def found(config: Config, steps: int, batch_size: int | None = None) -> Difference:
        asked.append((config, steps, batch_size))
        return Difference(0.0, 0.0, 0.0, "")

    monkeypatch.setattr(verify, "verify", found)
    assert main(["strategy=ddp", "workers=3", "steps=7"]) == 0
    assert main(["strategy=single", "trainer.batch_size=6"]) == 0
    (ddp, steps, batch), (single, default_steps, own_batch) = asked
    assert (ddp.strategy.name, ddp.workers, steps, batch) == ("ddp", 3, 7, None)
    assert (single.strategy.name, default_steps, own_batch) == ("single", 3, 6)


@pytest.mark.parametrize("arguments, words", [
    (["steps=0"], "steps=0 must be at least 1"),
    (["steps=two"], "steps=two must be a whole number"),
    (["strategy=nope"], "strategy=nope is not known"),
    (["strategy=one_weird_trick", "strategy.scheme=c", "workers=2", "trainer.batch_size=3"],
     "trainer.batch_size=3 must be a multiple of the plan's micro_batches=2"),
    (["strategy=ddp", "workers=2", "trainer.batch_size=3"], "trainer.batch_size=3 must be a multiple of workers=2"),
    (["strategy=from_file", "strategy.path=nowhere"], "strategy.path=nowhere is not a file"),
    (["workers=0"], "workers=0 must be at least 1"),
])
def test_bad_input_ends_with_2(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("error: ") and words in err
