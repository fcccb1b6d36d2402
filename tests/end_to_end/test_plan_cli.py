"""`python -m parallel.plan`: output, errors, and reuse of its plan file."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallel.cli.compose import compose_config
from parallel.data import DATA_SETS, known_classes, open_data
from parallel.graph.configured import classes_of, graph_of
from parallel.plan import main
from parallel.plans import Plan
from parallel.plans.text import compact
from parallel.prediction.plans import plan_of
from tests.support.commands import Run


def weird_plan(*overrides: str) -> Plan:
    config = compose_config(["strategy=one_weird_trick", "workers=2", *overrides])
    return plan_of(config, graph_of(config))


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_plan_is_printed_compactly_with_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    out = output_of(
        capsys,
        "strategy=one_weird_trick",
        "strategy.scheme=a",
        "workers=2",
        "trainer.batch_size=128",
        "data=imagenet",
    )
    lines = [" ".join(line.split()) for line in out.splitlines()]
    plan = weird_plan("data=imagenet")
    assert lines[0] == f"one_weird_trick a: plan {plan.fingerprint}, 2 workers, global batch 128, fp32"
    assert lines[1].startswith("alexnet owt, 64 px, 1000 classes: 61,100,840 parameters")
    assert lines[3:6] == ["conv1 … drop6 n2 @0,1", "fc6 … fc8 c2 @0,1", "loss n2 @0,1"]
    assert "0 31,785,268 30,550,420 4.58 MB 4.58 MB 4.94 MB 4.94 MB 19 MB 18.51 G" in lines
    assert "all 63,570,536 61,100,840 9.17 MB 9.17 MB 9.88 MB 9.88 MB 38.1 MB 37.02 G" in lines
    assert any(line.startswith("memory weights gradients momentum") for line in lines)
    assert max(map(len, out.splitlines())) <= 120
    assert "F0:0" not in out


def test_steps_lists_every_step_of_every_worker(capsys: pytest.CaptureFixture[str]) -> None:
    out = output_of(capsys, "strategy=model_parallel", "workers=2", "strategy.micro_batches=2", "--steps")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    first, second = lines.index("worker 0"), lines.index("worker 1")
    assert "2 micro-batches, 1f1b" in lines[0]
    steps = [[line.split()[0] for line in part if line][2:] for part in (lines[first:second], lines[second:])]
    assert steps[0][:3] == ["F0:0", "X0:0>", "F0:1"] and steps[0][-1].startswith("U")
    assert steps[1][:3] == ["X0:0>", "W0:0>", "F1:0"] and "<X0:1" in steps[1]
    second_exchange = next(line for line in lines[first:second] if line.startswith("X0:1> "))
    assert "[16:32, " in second_exchange and second_exchange.endswith(" kB")


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=single"],
        ["strategy=data_parallel", "workers=4"],
        ["strategy=model_parallel", "workers=3", "strategy.micro_batches=4", "strategy.pipeline=fill_drain"],
        ["strategy=model_parallel", "workers=2", "strategy.scheme=tensor", "model.variant=original"],
        ["strategy=one_weird_trick", "workers=2", "strategy.scheme=a"],
        ["strategy=one_weird_trick", "workers=4", "strategy.scheme=c", "strategy.update=pass"],
    ],
    ids=" ".join,
)
def test_the_yaml_is_a_plan_file_for_from_file(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(output_of(capsys, *overrides, "--yaml"), encoding="utf-8")
    others = [o for o in overrides if o.startswith(("workers", "model."))]
    again = ["strategy=from_file", f"strategy.path={path}", *others]
    assert output_of(capsys, *again, "--yaml") == path.read_text(encoding="utf-8")
    tables = [output_of(capsys, *arguments, "--steps").partition("\n")[2] for arguments in (overrides, again)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["strategy=ddp"], "strategy=ddp makes no plan"),
        (["--step"], "flag=--step is not known; there are --steps, --yaml"),
        (["strategy=data_parallel", "workers=64"], "trainer.batch_size=32 is too small: conv1"),
        (["strategy=from_file", "strategy.path=nowhere.yaml"], "strategy.path=nowhere.yaml is not a file"),
        (["strategy=none_such"], "strategy=none_such is not known"),
        (["model.size=3"], "model.size"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1


def test_compact_joins_only_consecutive_ops() -> None:
    assert [(names, str(layout)) for names, layout in compact(weird_plan())] == [
        ("conv1 … drop6", "n2 @0,1"),
        ("fc6 … fc8", "c2 @0,1"),
        ("loss", "n2 @0,1"),
    ]


def test_classes_are_known_without_opening_the_data() -> None:
    for overrides in (["data=digits"], ["data=synthetic", "data.num_classes=7"]):
        data = compose_config(overrides).data
        assert known_classes(data) == open_data(data, 64, 0).num_classes
    assert [DATA_SETS[name].num_classes for name in ("tiny_imagenet", "dogs_vs_cats", "imagenet")] == [
        200,
        2,
        1000,
    ]
    assert classes_of(compose_config(["model.num_classes=1000"])) == 1000


def test_the_command(run: Run) -> None:
    done = run("parallel.plan", "strategy=data_parallel", "workers=2")
    assert done.returncode == 0, done.stderr
    assert "conv1 … loss  n2 @0,1" in done.stdout and done.stderr == ""
    assert run("parallel.plan", "--help").stdout.startswith("Show what a plan does before running it")
