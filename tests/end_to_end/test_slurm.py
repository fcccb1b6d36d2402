"""Runs and sweeps in a real Slurm of two nodes, which scripts/slurm_on_one_machine.py sets up.

Nothing is installed: without Slurm's programs these tests are skipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from parallel.checkpoints.checkpoint import whole_checkpoints
from parallel.cli.slurm_ranks import node_names
from parallel.results.record_files import read_record
from scripts.slurm_on_one_machine import PROGRAMS, down, program, up
from tests.support.commands import ROOT, Start, variables
from tests.support.waiting import free_port, wait_for

MISSING = [name for name in PROGRAMS if program(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"no Slurm here ({', '.join(MISSING)} missing): `python scripts/slurm_on_one_machine.py install`",
    ),
]
FAKE = "tests.support.fake_job"
TRAINED = "tests.support.altered_training"
TRAINING = (
    "model=small",
    "data.train_images=40",
    "data.val_images=8",
    "trainer.batch_size=8",
    "tracker=none",
)
SWEEP = ("hydra/launcher=submitit_slurm", "hydra.launcher.poll_s=0.5", "sweep=mine")
LIMIT_S = 240.0

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Slurm of two nodes with two CPUs each; yields its configuration."""
    folder = tmp_path_factory.mktemp("slurm") / "files"
    up(folder, nodes=2, cpus=2)
    try:
        yield folder / "slurm.conf"
    finally:
        down(folder)
        assert not folder.exists()


@pytest.fixture
def environment(configuration: Path) -> dict[str, str]:
    return {"SLURM_CONF": str(configuration)}


@pytest.fixture
def call(environment: dict[str, str], tmp_path: Path) -> Call:
    """Run a command of Slurm in the test's folder."""

    def one(*command: str, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=variables({**environment, **(more or {})}),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    return one


def tasks(module: str, *arguments: str) -> list[str]:
    """The command line of a step with one worker on each of the two nodes."""
    return [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--kill-on-bad-exit=0",
        sys.executable,
        "-m",
        module,
        *arguments,
    ]


def test_srun_starts_one_task_per_worker(call: Call, tmp_path: Path) -> None:
    done = call(*tasks(FAKE, "strategy=ddp", f"hydra.run.dir={tmp_path}/run"))
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run").config["workers"] == 2


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["strategy=single"],
            "strategy=single needs 1 process, but srun started 2: use `srun --ntasks 1 python",
        ),
        (
            ["strategy=ddp", "workers=3"],
            "workers=3 needs 3 processes, but srun started 2: use `srun --ntasks 3",
        ),
        (["-m", "strategy=ddp"], "a sweep under srun is not possible"),
    ],
)
def test_wrong_number_of_tasks(arguments: list[str], sentence: str, call: Call) -> None:
    done = call(*tasks(FAKE, *arguments))
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) in (1, 2), "one rank may speak for both"
    assert sentence in errors[0]
    assert "Traceback" not in done.stderr


def test_a_batch_script_is_one_process(call: Call, tmp_path: Path) -> None:
    """Although Slurm sets SLURM_NTASKS=2 in it."""
    command = f"{sys.executable} -m {FAKE} strategy=single hydra.run.dir={tmp_path}/run"
    done = call("sbatch", "--wait", "--ntasks=2", f"--output={tmp_path}/log", f"--wrap={command}")
    assert done.returncode == 0, (tmp_path / "log").read_text()
    assert read_record(tmp_path / "run").config["workers"] == 1


def test_srun_torchrun(call: Call, tmp_path: Path) -> None:
    torchrun = (
        f"{sys.executable} -m parallel.torchrun --nnodes=2 --node-rank=$SLURM_NODEID --nproc-per-node=1 "
        f"--master-addr=127.0.0.1 --master-port={free_port()} -m {FAKE} strategy=ddp hydra.run.dir={tmp_path}/run"
    )
    done = call("srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", torchrun)
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run").config["workers"] == 2


def test_the_script_that_starts_torchrun_on_every_node(call: Call, tmp_path: Path) -> None:
    """The names of these nodes do not resolve, so the address is that of Slurm's configuration."""
    text = (ROOT / "scripts/slurm/torchrun.sbatch").read_text()
    trains = "-m parallel.train strategy=data_parallel data=digits"
    assert trains in text
    script = tmp_path / "torchrun.sbatch"
    script.write_text(text.replace(trains, f"-m {FAKE} strategy=ddp"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = call("sbatch", "--wait", f"--output={tmp_path}/log", str(script), more={"PATH": path})
    assert done.returncode == 0, (tmp_path / "log").read_text()
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert read_record(run_dir).config["workers"] == 4


def test_preempted_job_of_a_sweep_goes_on(
    start: Start, call: Call, environment: dict[str, str], tmp_path: Path
) -> None:
    sweep = start(
        TRAINED,
        "-m",
        *TRAINING,
        "strategy=single,data_parallel",
        "workers=2",
        "trainer.epochs=120",
        "trainer.checkpoint.every=20 steps",
        *SWEEP,
        # One job after the other, so that the urgent one preempts the first.
        "hydra.launcher.array_parallelism=1",
        "hydra.launcher.additional_parameters={exclusive: true}",
        environment=environment,
        real=True,
    )
    first = tmp_path / "runs/mine/strategy=single"
    wait_for(lambda: sweep.poll() is not None or bool(whole_checkpoints(first / "checkpoints")), LIMIT_S)
    urgent = call("sbatch", "--wait", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    assert urgent.returncode == 0, urgent.stderr
    out, err = sweep.communicate(timeout=LIMIT_S)
    assert sweep.returncode == 0, out + err
    assert "2 done" in out and "pending (BeginTime)" in out
    record = read_record(first)
    assert record.restarts == 1 and [attempt.step for attempt in record.attempts][0] == 0
    assert record.attempts[1].step >= 20, "it went on at a checkpoint"
    assert read_record(tmp_path / "runs/mine/strategy=data_parallel").restarts == 0
    log = next((first / "slurm").glob("log-*.txt")).read_text()
    assert "stopped by a signal after step" in log


def test_ctrl_c_cancels_the_jobs(
    start: Start, call: Call, environment: dict[str, str], tmp_path: Path
) -> None:
    sweep = start(
        FAKE,
        "-m",
        "strategy=single",
        *SWEEP,
        environment={**environment, "FAKE_JOB": '{"single": "sleep"}'},
        real=True,
    )
    wait_for(lambda: sweep.poll() is not None or bool(list(tmp_path.glob("runs/mine/*/started"))), LIMIT_S)
    sweep.send_signal(signal.SIGINT)
    out, err = sweep.communicate(timeout=LIMIT_S)
    assert sweep.returncode == 130 and "cancelled the jobs" in err and "1 interrupted" in out
    wait_for(lambda: not call("squeue", "--noheader").stdout.strip(), 60.0)


@pytest.mark.parametrize(
    "arguments, actions, code, words",
    [
        (["hydra.launcher.partition=nowhere"], "{}", 2, "invalid partition specified: nowhere"),
        ([], '{"ddp": "raise"}', 1, "RuntimeError: boom in ddp"),
        ([], '{"ddp": "refuse"}', 1, "trainer.batch_size=33 can't be split by ddp"),
    ],
)
def test_jobs_that_cannot_be(
    arguments: list[str],
    actions: str,
    code: int,
    words: str,
    start: Start,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    sweep = start(
        *(FAKE, "-m", "strategy=ddp", "workers=2", *SWEEP, *arguments),
        environment={**environment, "FAKE_JOB": actions},
        real=True,
    )
    out, err = sweep.communicate(timeout=LIMIT_S)
    assert sweep.returncode == code, out + err
    assert words in err
    assert code == 1 or len([line for line in err.splitlines() if line]) == 1


def test_node_names_as_slurm_expands_them(call: Call) -> None:
    for text in ("node[1-3]", "node[01-03,07],login-2", "a[9-11]"):
        assert call("scontrol", "show", "hostnames", text).stdout.split() == node_names(text)
