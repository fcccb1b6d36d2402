"""`python -m parallel.verify` from the command line: it accepts correct plans and rejects wrong
ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from parallel import verify
from parallel.config import ClusterConfig, Config
from parallel.runtime.communication.chaos import Chaos
from parallel.verification.default_plans import DEFAULT_PLANS, DefaultPlan, default_cases
from parallel.verification.parity import TOLERANCE, Difference, largest_difference
from tests.support.commands import Run


def main(arguments: Sequence[str]) -> int:
    return verify.COMMAND.run(verify.body, arguments)


def test_what_is_right_is_equal(run: Run, tmp_path: Path) -> None:
    ended = run(
        "parallel.verify",
        "model=small",
        "strategy=one_weird_trick",
        "strategy.scheme=c",
        "workers=2",
        "steps=1",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"equal: the bound is {TOLERANCE:.0e}" in ended.stdout
    shown = {
        line.split()[0]: float(line.split()[1])
        for line in ended.stdout.splitlines()
        if line.split()[0] in Difference().by_quantity
    }
    assert set(shown) == set(Difference().by_quantity)
    assert all(0 <= value <= TOLERANCE for value in shown.values()) and shown["gradients"] > 0, (
        "it did compare"
    )
    assert list(tmp_path.iterdir()) == [], "no run directory"


def test_default_plans_have_every_strategy_split_and_kind_of_op() -> None:
    cases = [case for _, case in default_cases(1)]
    plans = [case.plan for case in cases if case.plan is not None]
    assert {None, "single", "data_parallel", "model_parallel", "one_weird_trick", "ddp"} == {
        None if isinstance(default.plan, str) else default.plan.name for default in DEFAULT_PLANS
    }
    assert {(plan.scheme, plan.update) for plan in plans} == {
        ("a", "step"),
        ("b", "step"),
        ("b", "pass"),
        ("c", "step"),
        ("c", "pass"),
    }
    split = {
        (type(op).__name__, dim)
        for case in cases
        for op in case.graph
        for dim in "nckhw"
        if case.plan is not None and getattr(case.plan[op.name], dim) != 1
    }
    for kind, dims in {
        "Conv2d": "nckhw",
        "MaxPool2d": "nchw",
        "LocalResponseNorm": "nchw",
        "Linear": "nck",
        "BatchNorm2d": "nchw",
        "BatchSums": "nchw",
        "Dropout": "nc",
    }.items():
        assert {(kind, dim) for dim in dims} <= split
    assert all(case.program is not None for case in cases if case.plan is not None), "each passes its dry run"


def test_gradients_of_rounding_alone_are_no_difference_and_small_ones_are() -> None:
    """A bias before a batch normalisation has no gradient; other parameters may have a small
    one."""
    whole = {"fc.weight": torch.full((3,), 2.0, dtype=torch.float64)}
    for small, ours, equal in (
        (3e-17, -5e-17, True),
        (0.0, 0.0, True),
        (1e-6, 1.1e-6, False),
        (1e-6, 1e-6, True),
    ):
        theirs = {**whole, "conv.bias": torch.tensor([small], dtype=torch.float64)}
        found = {**whole, "conv.bias": torch.tensor([ours], dtype=torch.float64)}
        assert (largest_difference(found, theirs)[0] <= TOLERANCE) is equal, (small, ours)


def test_tensors_that_only_one_side_has_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="conv.bias"):
        largest_difference({}, {"conv.bias": torch.zeros(1)})


BROKEN = (
    Difference(losses=2e-10, worst="fc6.weight"),
    Difference(gradients=1.0, worst="fc6.weight"),
    Difference(weights=2e-10, worst="fc6.weight"),
    Difference(gradients=math.nan, worst="fc6.weight"),
    Difference(losses=math.inf, worst="fc6.weight"),
    Difference(statistics=2e-10, worst="fc6.weight"),
    Difference(evaluation=math.nan, worst="fc6.weight"),
)


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_any_difference_ends_with_1(
    broken: Difference, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*args: object) -> Difference:
        return broken

    def defaults(*args: object, **options: object) -> Iterator[tuple[DefaultPlan, Difference]]:
        yield DEFAULT_PLANS[0], Difference()
        yield DEFAULT_PLANS[1], broken
        yield DEFAULT_PLANS[2], Difference()

    monkeypatch.setattr(verify, "verify", found)
    monkeypatch.setattr(verify, "verify_defaults", defaults)
    assert main(["strategy=data_parallel", "workers=2"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT" in out and "worst at   fc6.weight" in out
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "data_parallel is DIFFERENT: worst at fc6.weight" in out and "\nDIFFERENT" in out


def test_the_command_line_reaches_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Config, int, int | None, Chaos | None]] = []
    defaults: list[tuple[int, Chaos | None, str]] = []

    def found(
        config: Config, steps: int, batch_size: int | None, chaos: Chaos | None, tell: object
    ) -> Difference:
        asked.append((config, steps, batch_size, chaos))
        return Difference()

    def all_found(
        steps: int, chaos: Chaos | None, *, wanted: ClusterConfig, tell: object
    ) -> Iterator[tuple[DefaultPlan, Difference]]:
        defaults.append((steps, chaos, wanted.device))
        yield DEFAULT_PLANS[0], Difference()

    monkeypatch.setattr(verify, "verify", found)
    monkeypatch.setattr(verify, "verify_defaults", all_found)
    assert main(["strategy=ddp", "workers=3", "steps=7"]) == 0
    assert main(["strategy=single", "trainer.batch_size=6", "chaos=true"]) == 0
    assert main([]) == main(["steps=2", "chaos=false", "cluster.device=cpu"]) == 0
    (ddp, steps, batch, chaos), (single, default_steps, own_batch, own_chaos) = asked
    assert (ddp.strategy.name, ddp.workers, steps, batch, chaos) == ("ddp", 3, 7, None, None)
    assert (single.strategy.name, default_steps, own_batch, own_chaos) == ("single", 3, 6, Chaos())
    assert defaults == [(3, Chaos(), "auto"), (2, None, "cpu")]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["steps=0"], "steps=0 must be a whole number of at least 1"),
        (["steps=two"], "steps=two must be a whole number"),
        (["strategy=nope"], "strategy=nope is not known"),
        (
            ["strategy=one_weird_trick", "strategy.scheme=c", "workers=2", "trainer.batch_size=3"],
            "trainer.batch_size=3 must be a multiple of the plan's micro_batches=2",
        ),
        (
            ["strategy=ddp", "workers=2", "trainer.batch_size=3"],
            "trainer.batch_size=3 must be a multiple of workers=2",
        ),
        (["strategy=from_file", "strategy.path=nowhere"], "strategy.path=nowhere is not a file"),
        (["workers=0"], "workers=0 must be at least 1"),
        (
            ["workers=2", "model=vgg16"],
            "overrides=workers=2 model=vgg16 need a strategy=NAME; the default plans take only those of cluster",
        ),
        (["chaos=maybe"], "chaos=maybe is not known; it must be one of true, false"),
    ],
)
def test_bad_input_ends_with_2(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("error: ") and words in err
