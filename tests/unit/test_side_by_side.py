"""Commands that run at the same time, each on its own part of the machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from parallel.cli.side_by_side import Share, Start, Task, divide, gpu_names, run_side_by_side, usable_cores
from parallel.cli.sweep import Torchrun
from parallel.results.comparison import compare
from parallel.results.notes import notes
from parallel.results.run_summary import summary_among
from tests.support.made_records import ENVIRONMENT, made_record
from tests.support.waiting import wait_for


def test_shares_of_cores_are_disjoint_and_of_the_size_that_is_needed() -> None:
    assert [share.cores for share in divide(3, [0, 4, 1, 5, 2, 6, 3], [], (2, 0))] == [(0, 4), (1, 5), (2, 6)]


def test_shares_of_gpus_come_with_an_equal_part_of_the_cores() -> None:
    first, second = divide(2, range(5), ["3", "1", "GPU-a", "GPU-b"], (0, 2))
    assert (first, second) == (Share((0, 1), ("3", "1")), Share((2, 3), ("GPU-a", "GPU-b")))
    assert second.environment() == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    assert Share((0,)).environment() == {}


@pytest.mark.parametrize(
    ("shown", "visible", "names"),
    [
        (None, 0, []),
        (None, 2, ["0", "1"]),
        ("", 0, []),
        ("-1", 0, []),
        ("3, 1", 2, ["3", "1"]),
        ("0,-1,2", 1, ["0"]),
        ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),
        ("MIG-a,MIG-b", 0, []),
    ],
)
def test_names_of_gpus(shown: str | None, visible: int, names: list[str]) -> None:
    assert gpu_names(shown, visible) == names


@pytest.mark.parametrize(
    ("jobs", "needs", "sentence"),
    [
        (3, (2, 0), "3 × 2 cores for the largest jobs of this sweep, and this machine has 4: at most 2"),
        (2, (0, 2), "2 × 2 GPUs for the largest jobs of this sweep, and this machine has 3: at most 1"),
    ],
)
def test_too_small_a_machine_is_refused(jobs: int, needs: tuple[int, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"hydra\.launcher\.jobs={jobs} needs {sentence}"):
        divide(jobs, range(4), ["0", "1", "2"], needs)


@pytest.mark.parametrize("settings", [{"jobs": 0}, {"jobs": 1.5}, {"jobs": 2, "nnodes": 2}])
def test_invalid_numbers_of_jobs_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"hydra\.launcher\.jobs"):
        Torchrun(**settings)


def test_threads_of_a_core_are_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, (package, core) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1), (0, 0), (1, 0)]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert usable_cores(tmp_path) == [0, 4, 2, 1, 5, 3]
    assert usable_cores(tmp_path / "unknown") == list(range(6))


def task(program: str, share: Share, name: str = "[1]") -> Task:
    return Task(name, [sys.executable, "-c", program], {**os.environ, **share.environment()})


def test_commands_run_on_their_cores_and_name_their_lines(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    program = "import os; print(sorted(os.sched_getaffinity(0))); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    ended: list[tuple[int, int]] = []

    def note(number: int, code: int, seconds: float) -> bool:
        ended.append((number, code))
        return True

    starts: list[Start] = [partial(task, program, name=f"[{number}]") for number in (1, 2, 3)]
    run_side_by_side(starts, [Share((core,), ("a",)), Share((core,), ("b",))], 1.0, note)
    assert sorted(ended) == [(0, 0), (1, 0), (2, 0)]
    lines = capfd.readouterr().out.splitlines()
    assert sorted(line[:3] for line in lines) == ["[1]", "[1]", "[2]", "[2]", "[3]", "[3]"]
    assert lines.count(f"[1] [{core}]") == 1 and {"[1] a", "[2] b"} <= set(lines)
    assert os.sched_getaffinity(0) == before


def test_no_further_command_is_started_after_a_failure_that_stops(capfd: pytest.CaptureFixture[str]) -> None:
    codes = []

    def stop(number: int, code: int, seconds: float) -> bool:
        codes.append(code)
        return False

    core = Share((min(os.sched_getaffinity(0)),))
    run_side_by_side([partial(task, "raise SystemExit(3)"), partial(task, "")], [core], 1.0, stop)
    assert codes == [3]


def test_ctrl_c_ends_all_process_trees(tmp_path: Path) -> None:
    program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    files = [tmp_path / "1", tmp_path / "2"]

    def start(path: Path, share: Share) -> Task:
        return Task("[1]", [sys.executable, "-c", program, str(path)], dict(os.environ))

    def interrupt() -> None:
        wait_for(lambda: all(file.exists() and file.read_text() for file in files), 60.0)
        started.extend(psutil.Process(int(file.read_text())) for file in files)
        os.kill(os.getpid(), signal.SIGINT)

    share, started = Share((min(os.sched_getaffinity(0)),)), list[psutil.Process]()
    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([partial(start, file) for file in files], [share, share], 5.0, lambda *_: True)
    assert time.monotonic() - began < 300
    assert len(started) == 2 and not any(process.is_running() for process in started)


def test_no_speedups_are_computed_from_jobs_that_ran_side_by_side() -> None:
    shared = {**ENVIRONMENT, "side_by_side": 2}
    alone = made_record("single", (10.0, 10.0))
    base, ours = (
        made_record("single", (20.0, 20.0), environment=shared),
        made_record("ddp", (9.0, 9.0), environment=shared),
    )
    first, second = compare([alone, base, ours])
    assert first.results[0].speedup is not None
    assert [result.speedup for result in second.results] == [None, None]
    assert [result.top1 for result in second.results] == [0.75, 0.75]
    assert second.hardware.endswith(", 2 jobs side by side")
    assert [note for note in notes(second) if "speedup" in note.lower()] == [
        "No speedups: jobs ran side by side on the same machine, and the times of one depend on the others; without "
        "hydra.launcher.jobs they run one after another"
    ]
    assert "side by side" in str(summary_among(ours, [alone, base, ours])["speedup_note"])
