"""scripts/gpu_check.py: how sections share the time, what the page says, and what a trace shows."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from gpu_sections import budget, roofline
from gpu_sections.page import Outcome, page
from gpu_sections.profile import covered, lines_of, profile_of
from gpu_sections.section import ROOT, Ending, Setting, code_block, ending_of, markdown_row, run_command
from gpu_sections.speed import is_out_of_memory

from parallel.cluster import read_cluster
from parallel.graph.configured import model_graph
from parallel.models.alexnet import AlexNetConfig

ALL = list(budget.WEIGHTS)


def test_sections_share_what_is_left() -> None:
    assert budget.limit_s("machine", ALL, 29 * 60) == pytest.approx(60)
    assert budget.limit_s("profile", ALL, 77) == 77, "the last one has all of it"
    assert budget.limit_s("speed", ["speed", "profile"], 130) == pytest.approx(110)
    assert budget.limit_s("tests", ALL, 10) == 0, "too little to start"


def test_sections_run_in_their_order() -> None:
    assert budget.chosen("") == ALL
    assert budget.chosen("profile, machine") == ["machine", "profile"]
    with pytest.raises(ValueError, match="--only=memory must be some of machine, tests, parity"):
        budget.chosen("memory,profile")


def test_exit_codes_of_sections() -> None:
    assert [ending_of(code) for code in (0, 3, 1, -9)] == [
        *(Ending.PASSED, Ending.MISSED),
        *(Ending.FAILED, Ending.FAILED),
    ]
    assert [ending.ok for ending in Ending] == [True, True, False, False, False]


def test_the_page_keeps_what_a_failed_section_wrote() -> None:
    outcomes = [
        Outcome("machine", Ending.PASSED, 3.2, 60, "| fact | value |\n", "noise"),
        Outcome("speed", Ending.TIME_OUT, 600.4, 600, "### 224 px\n", "line\n" * 100 + "the last\n"),
        Outcome("profile", Ending.SKIPPED, 0, 0, ""),
    ]
    text = page("python scripts/gpu_check.py", "cuda", "2026-01-01T00:00:00+00:00", outcomes)
    assert (
        "| Machine | passed | 3 s | 60 s |" in text and "| Speed of one worker | time out | 600 s |" in text
    )
    assert "### 224 px" in text and "the last" in text and "noise" not in text
    assert "… 61 lines before" in text and "On a CPU" not in text
    assert "On a CPU" in page("x", "cpu", "now", outcomes)


def test_text_cannot_break_the_page() -> None:
    assert markdown_row(("a|b", "c")) == "| a\\|b | c |"
    assert code_block("```\nx")[1:3] == ["'''", "x"]


def test_output_is_in_the_log_before_a_command_ends(tmp_path: Path) -> None:
    """A section that is ended at its limit shows how far it came."""
    seen = tmp_path / "seen"

    class Log(io.StringIO):
        def write(self, text: str) -> int:
            if "first" in text:
                seen.touch()
            return super().write(text)

    code = (
        "import pathlib, sys, time; print('first'); end = time.monotonic() + 20\n"
        f"while not pathlib.Path({str(seen)!r}).exists() and time.monotonic() < end: time.sleep(0.01)\n"
        "print(time.monotonic() < end, file=sys.stderr); sys.exit(7)"
    )
    setting = Setting("cpu", tmp_path / "page.md", tmp_path, limit_s=60, begin=0)
    with contextlib.redirect_stdout(Log()):
        done = run_command(setting, "-c", code)
    assert (done.returncode, done.stdout) == (7, "first\nTrue\n")


def event(cat: str, name: str, ts: float, dur: float) -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": ts, "dur": dur}


def test_a_trace_shows_launches_gaps_and_synchronisations() -> None:
    """Two steps of 1 ms: two kernels that overlap, a gap, a copy."""
    events = []
    for begin in (0.0, 1000.0):
        events += [
            event("kernel", "gemm", begin, 400),
            event("kernel", "relu", begin + 300, 200),
            event("gpu_memcpy", "Memcpy HtoD", begin + 900, 100),
            event("gpu_user_annotation", "0F", begin, 1000),
            event("cpu_op", "aten::mm", begin, 50),
            event("cuda_runtime", "cudaLaunchKernel", begin, 5),
            event("cuda_driver", "cuLaunchKernelEx", begin, 5),
            event("cuda_runtime", "cudaMemcpyAsync", begin, 5),
            event("cuda_runtime", "cudaEventRecord", begin, 5),
        ]
    events.append(event("cuda_runtime", "cudaDeviceSynchronize", 1999, 1))
    found = profile_of(events, 2, {"kernel", "gpu_memcpy", "gpu_memset"})
    assert (found.device_ops, found.launches, found.syncs) == (3, 3, 0.5)
    assert (found.busy_ms, found.gap_ms) == (pytest.approx(0.6), pytest.approx(0.4))
    assert found.top[0] == ("gemm", pytest.approx(0.4), 1)
    assert "waits for 0.4 ms (40%)" in lines_of(found)[0]


def test_an_empty_trace() -> None:
    assert lines_of(profile_of([], 2, {"kernel"}))[0].startswith("A step: 0 kernels")


def test_spans_that_overlap_count_once() -> None:
    assert covered([(0, 10), (2, 3), (5, 12), (20, 21)]) == 13


def test_the_roofline_of_a_gpu() -> None:
    graph = model_graph(AlexNetConfig(image_size=224), 1000)
    assert roofline.cluster_of_gpu("NVIDIA H100 80GB HBM3") == "h100"
    assert roofline.bound_s("NVIDIA GeForce RTX 4090", graph, 128, "tf32") is None
    assert roofline.bound_s("Tesla V100-SXM2-16GB", graph, 128, "tf32") is None
    fp32, tf32 = (roofline.bound_s("NVIDIA H200", graph, 2048, precision) for precision in ("fp32", "tf32"))
    assert fp32 is not None and tf32 is not None and fp32 > 2 * tf32
    # Multiply-adds of forward and two backward passes, without the images' gradient, at the peak.
    least = 3 * 2 * (graph.multiply_adds - 64 * 55 * 55 * 3 * 121 / 3) * 2048 / 67e12
    assert least <= fp32 < 1.3 * least


def test_memory_may_end_within_a_step() -> None:
    outer = RuntimeError("instruction 3")
    outer.__cause__ = torch.cuda.OutOfMemoryError("2 GiB")
    assert is_out_of_memory(outer) and not is_out_of_memory(RuntimeError("other"))


def test_every_gpu_s_cluster_is_shipped() -> None:
    for name in set(roofline.CLUSTERS.values()):
        roofline.ideal(read_cluster((ROOT / "conf" / "cluster" / f"{name}.yaml").read_text()))


def test_a_section_is_ended_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote is kept; the next one runs, and the exit code says that one failed."""
    sections = tmp_path / "sections.py"
    sections.write_text(
        "import sys, time, pathlib\n"
        "options = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "page = pathlib.Path(options['--folder']) / 'page.md'\n"
        "page.write_text('wrote ' + options['--section'])\n"
        "print('log of', options['--section'], flush=True)\n"
        "time.sleep(60 if options['--section'] == 'machine' else 0)\n"
        "sys.exit({'tests': 1, 'parity': 3}.get(options['--section'], 0))\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(gpu_check, "__file__", str(sections))
    monkeypatch.setattr(budget, "limit_s", lambda name, order, left: 1.0 if name == "machine" else 30.0)
    out, begin = tmp_path / "page.md", time.monotonic()
    assert not gpu_check.check(["machine", "tests", "parity", "speed"], "cpu", 1, out)
    text = out.read_text(encoding="utf-8")
    assert time.monotonic() - begin < 40
    assert "| Machine | time out |" in text and "wrote machine" in text and "log of machine" in text
    assert "| Tests that need a GPU | failed |" in text and "log of tests" in text
    assert "| Parity with plain PyTorch | target missed |" in text and "log of parity" not in text
    assert "| Speed of one worker | passed |" in text
    assert gpu_check.check(["parity", "speed"], "cpu", 1, out), "a missed target is no error"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--only", "memory", "--device", "cpu"], "--only=memory must be some of machine"),
        (["--minutes", "0", "--device", "cpu"], "--minutes=0 must be above 0"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_sections_append_to_the_page(tmp_path: Path) -> None:
    setting = Setting("cpu", tmp_path / "page.md", tmp_path, 10.0, time.monotonic())
    setting.write("a", "")
    setting.write("b")
    assert setting.page.read_text() == "a\n\nb\n" and setting.tiny and 9 < setting.left_s <= 10


@pytest.mark.slow
def test_the_check_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/gpu_check.py", "--device", "cpu", "--out", str(tmp_path / "page.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert done.returncode == 0, text
    assert text.count("| passed |") == len(ALL) and "equal: the bound" in text and "Mean error" in text
