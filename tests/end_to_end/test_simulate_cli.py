"""`python -m parallel.simulate`: output, drawing, trace and errors."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from parallel.cli.compose import compose_config
from parallel.config import Config
from parallel.prediction.predict import Prediction, Predictor
from parallel.simulate import main
from parallel.simulator.trace import Bar, trace_of

ON_DGX1 = ("cluster=dgx1", "data=imagenet", "model.image_size=224", "trainer.batch_size=256")


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """Return the words of each printed line."""
    assert main(arguments) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def prediction_of(*overrides: str, weak: bool = False) -> Prediction:
    config: Config = compose_config(overrides)
    return Predictor().predict(config, weak)


def test_one_configuration_is_told_worker_by_worker(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output_of(capsys, "strategy=one_weird_trick", "workers=2", *ON_DGX1)
    prediction = prediction_of("strategy=one_weird_trick", "workers=2", *ON_DGX1)
    assert lines[0][:2] == ["one_weird_trick", "a:"] and "cluster dgx1," in " ".join(lines[1])
    assert f"step {prediction.timeline.loaded_step_s * 1e3:,.4g} ms," in " ".join(lines[3])
    assert f"{prediction.speedup:.2f}× single" in " ".join(lines[3])
    assert " ".join(lines[4]).startswith("epoch of 5,004 steps on imagenet")
    assert [line[0] for line in lines[7:]] == ["0", "1"]


def test_the_speedup_is_over_one_worker_of_the_same_cluster() -> None:
    single, two = (
        prediction_of(f"strategy={name}", "workers=2", *ON_DGX1) for name in ("single", "data_parallel")
    )
    assert single.speedup == 1.0 and single.timeline.workers == 1
    assert two.single.step_s == single.timeline.step_s
    assert two.speedup == pytest.approx(single.timeline.loaded_step_s / two.timeline.loaded_step_s)
    assert 1 < two.speedup < 2


def test_weak_scaling_gives_every_worker_the_batch() -> None:
    four = prediction_of("strategy=data_parallel", "workers=4", *ON_DGX1, weak=True)
    assert (four.batch_size, four.single.program.batch_size) == (1024, 256)
    assert four.speedup == pytest.approx(4 * four.single.loaded_step_s / four.timeline.loaded_step_s)


def test_a_sweep_has_a_row_for_every_combination(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output_of(
        capsys,
        "-m",
        "workers=1,2,512",
        "strategy=data_parallel,one_weird_trick",
        "cluster=h100_infiniband",
        "data=imagenet",
        "trainer.batch_size=256",
    )
    assert lines[0][:4] == ["strategy", "workers", "batch", "step"]
    assert [line[:3] for line in lines[1:5]] == [
        [strategy, workers, "256"] for workers in "12" for strategy in ("data_parallel", "one_weird_trick")
    ]
    assert lines[5][:2] == ["data_parallel", "512"]
    assert "is too small: conv1 is split in n into 512 parts" in " ".join(
        itertools.chain.from_iterable(lines[5:])
    )


def test_a_sweep_without_a_possible_combination_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "workers=512,1024", "strategy=data_parallel", "cluster=dgx1"]) == 2
    assert "more than the 8 of cluster dgx1" in " ".join(capsys.readouterr().out.split())


def test_the_trace_is_what_perfetto_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.json"
    output_of(
        capsys,
        "strategy=model_parallel",
        "strategy.micro_batches=4",
        "workers=2",
        *ON_DGX1,
        f"--trace={path}",
    )
    trace = json.loads(path.read_text())
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    names = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"
    }
    assert sorted((pid, name) for (pid, _), name in names.items()) == [
        (0, "compute"),
        (0, "network"),
        (1, "compute"),
        (1, "network"),
    ]
    for stream in names:
        own = sorted((b for b in bars if (b["pid"], b["tid"]) == stream), key=lambda b: float(b["ts"]))
        assert own and all(b["dur"] > 0 for b in own)
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in itertools.pairwise(own))
    memory = [e for e in trace["traceEvents"] if e["ph"] == "C" and e["pid"] == 0]
    assert max(e["args"]["bytes"] for e in memory) > memory[-1]["args"]["bytes"] == 0


def lanes_of(stream: str) -> tuple[dict[str, int], dict[int, str]]:
    """Return the thread of each of four bars, and the name of each thread."""
    bars = [
        Bar(0, stream, "sum", name, start, end)
        for name, start, end in (
            ("a", 0.0, 4.0),
            ("b", 1.0, 5.0),
            ("within a", 1.0, 2.0),
            ("after", 6.0, 7.0),
        )
    ]
    events: Any = trace_of(bars, [], "")["traceEvents"]
    return (
        {e["name"]: e["tid"] for e in events if e["ph"] == "X"},
        {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"},
    )


def test_messages_that_overlap_get_lanes_of_their_own() -> None:
    lanes, threads = lanes_of("network")
    assert lanes["sum a"] == lanes["sum after"]
    assert sorted(threads.values()) == ["network", "network 2", "network 3"]


def test_computing_may_lie_within_computing() -> None:
    lanes, threads = lanes_of("compute")
    assert lanes["sum a"] == lanes["sum within a"] == lanes["sum after"] != lanes["sum b"]
    assert threads == {lanes["sum a"]: "compute", lanes["sum b"]: "compute 2"}


def test_the_drawing_is_svg_with_a_bar_for_every_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "step.svg"
    output_of(capsys, "strategy=data_parallel", "workers=2", *ON_DGX1, "--svg", str(path))
    root = ElementTree.parse(path).getroot()
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    line = prediction_of("strategy=data_parallel", "workers=2", *ON_DGX1).timeline
    assert len(titles) == 2 * sum(event.end_s > event.start_s for event in line.events)
    assert sum(title.startswith("backward conv2:") for title in titles) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--svq", "a"], "flag=--svq is not known"),
        (["--svg"], "--svg= must name the file to write"),
        (
            ["--trace", "nowhere/a.json", "cluster=dgx1"],
            "--trace=nowhere/a.json lies in a folder that does not exist",
        ),
        (["-m", "--svg", "a.svg", "workers=1,2"], "--svg=a.svg needs one configuration"),
        (
            ["strategy=ddp", "cluster=dgx1", "workers=3"],
            "trainer.batch_size=32 must be a multiple of workers=3",
        ),
        (["cluster=dgx2"], "cluster=dgx2 is not known"),
        (
            ["cluster=dgx1", "workers=16", "strategy=data_parallel"],
            "workers=16 is more than the 8 of cluster dgx1",
        ),
        (["cluster=dgx1", "trainer.precision=bf16"], "trainer.precision=bf16 has no times in cluster dgx1"),
        (
            ["cluster=dgx1", "strategy=data_parallel", "workers=8", "trainer.batch_size=4"],
            "trainer.batch_size=4 is too",
        ),
        (["-m", "workers=1,2", "trainer.batch=4"], "trainer.batch is not a known key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "python -m parallel.simulate" in capsys.readouterr().out
