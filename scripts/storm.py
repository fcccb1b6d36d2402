"""Kill training runs at random moments, go on, and compare the final weights with undisturbed ones.

    python scripts/storm.py --kills 200 --seed 1

Five kinds of run take turns: one worker, data parallel, one weird trick and DDP on two workers under
torchrun, and a sweep of two jobs. Each is started, disturbed, started again with the same command,
and so on until it finishes. A disturbance is SIGKILL, SIGTERM, SIGINT or SIGSTOP to a random worker,
to torchrun, or to the process of the sweep: at a random moment, half of the time while a checkpoint
is being written. After each, all checkpoints must be readable and no process may be left; at the
start after it, training must go on at the newest checkpoint; and at the end, the weights must be
those of the run that nobody disturbed, in every bit.

A torchrun that was stopped (SIGSTOP) and whose workers have ended is killed: nobody else can. A
stopped sweep is continued after two seconds. `--goodput SECONDS` instead measures how much of the
time remains for training at a kill in so many seconds (torchrun --max-restarts).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil
from safetensors.torch import load_file

from parallel.checkpoints.checkpoint import CHECKPOINTS, Checkpoint, whole_checkpoints
from parallel.checkpoints.saver import PARTIAL
from parallel.results.record_files import RECORD, read_record
from parallel.training.checkpointing import MODEL

MARK = "PARALLEL_STORM"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)
WORKLOAD = (
    "model=resnet18",
    "model.image_size=32",
    "data.train_images=320",
    "data.val_images=32",
    "trainer.batch_size=16",
    "trainer.epochs=4",
    "trainer.checkpoint.every=4 steps",
    "cluster.timeout_s=5",
    "tracker=none",
)
ENDING_S = 90.0
"""Time in which all processes of a disturbed run must have ended."""


@dataclass(frozen=True)
class Kind:
    """A kind of run: its name, workers, and the strategies that it trains."""

    name: str
    workers: int
    strategies: tuple[str, ...]

    @property
    def sweep(self) -> bool:
        return len(self.strategies) > 1

    def folders(self, root: Path) -> list[Path]:
        """Return the run directories, one for each strategy."""
        if self.sweep:
            return [root / "runs" / self.name / f"strategy={strategy}" for strategy in self.strategies]
        return [root / "runs" / self.name]

    def command(self, restarts: int = 0) -> list[str]:
        """Return the command that starts the run and that goes on with it; torchrun starts the
        workers again `restarts` times."""
        train = ["-m", "parallel.train"]
        if self.sweep:
            names = f"strategy={','.join(self.strategies)}"
            launcher = ("hydra/launcher=torchrun", f"workers={self.workers}", f"sweep={self.name}")
            return [sys.executable, *train, "-m", names, *launcher, *WORKLOAD]
        torchrun = ["-m", "parallel.torchrun", f"--nproc-per-node={self.workers}"]
        torchrun += [f"--max-restarts={restarts}"]
        strategy = f"strategy={self.strategies[0]}"
        return [sys.executable, *torchrun, *train, strategy, f"hydra.run.dir=runs/{self.name}", *WORKLOAD]


KINDS = (
    Kind("single", 1, ("single",)),
    Kind("data_parallel", 2, ("data_parallel",)),
    Kind("one_weird_trick", 2, ("one_weird_trick",)),
    Kind("ddp", 2, ("ddp",)),
    Kind("sweep", 2, ("data_parallel", "one_weird_trick")),
)


@dataclass
class Tally:
    """What the storm has seen."""

    kills: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    unreadable: list[str] = field(default_factory=list)
    lost_steps: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    shared_memory: int = 0
    while_saving: int = 0
    ended_s: list[float] = field(default_factory=list)
    """Seconds from a disturbance to the end of the last process."""
    resumed_s: list[float] = field(default_factory=list)
    """Seconds from the start of the command to the first step."""


class Run:
    """The processes of one started command."""

    def __init__(self, kind: Kind, root: Path, extra: Sequence[str] = (), restarts: int = 0) -> None:
        self.kind, self.root = kind, root
        self.token = secrets.token_hex(8)
        self.begun = time.time()
        self.log = open(root / "log", "ab")
        self.process = subprocess.Popen(
            [*kind.command(restarts), *extra],
            cwd=root,
            env=os.environ | {MARK: self.token, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def members(self) -> list[psutil.Process]:
        """Return the processes that run, the command itself among them."""
        found = []
        for process in psutil.process_iter(["environ", "status"]):
            if (process.info["environ"] or {}).get(MARK) == self.token:
                if process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def roles(self) -> dict[str, list[psutil.Process]]:
        """Return the processes by role: worker, torchrun, sweep."""
        roles: dict[str, list[psutil.Process]] = {"worker": [], "torchrun": [], "sweep": []}
        for process in self.members():
            try:
                words, environment = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            if "RANK" in environment and "parallel.train" in words and "-m" in words[:3]:
                if not any("torchrun" in word for word in words):
                    roles["worker"].append(process)
            elif "parallel.cli.torchrun" in words or "parallel.torchrun" in words:
                roles["torchrun"].append(process)
            elif process.pid == self.process.pid:
                roles["sweep"].append(process)
        return roles

    def saving(self) -> bool:
        """Return whether a checkpoint is being written."""
        return any(
            True
            for folder in self.kind.folders(self.root)
            for _ in (folder / CHECKPOINTS).glob(f"*{PARTIAL}*")
        )

    def wait_until(self, condition: Callable[[], object], limit_s: float) -> bool:
        """Wait until the condition holds; return whether it did before the limit or the end."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.01)
        return False

    def end(self) -> None:
        """Kill whatever is left."""
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                process.kill()
        self.process.wait()
        self.log.close()


def disturb(run: Run, chance: random.Random, tally: Tally) -> str | None:
    """Send a random signal at a random moment; return what was done, None if the run ended first."""
    run.wait_until(lambda: run.roles()["worker"], 60.0)
    when = chance.choice(("start", "any", "any", "saving", "saving", "saving"))
    if when == "start":
        time.sleep(chance.uniform(0, 4))
    else:
        begun = run.begun
        run.wait_until(
            lambda: any(newer(folder / "starts", begun) for folder in run.kind.folders(run.root)), 60.0
        )
        time.sleep(chance.uniform(0, 5))
    if when == "saving":
        run.wait_until(run.saving, 10.0)
        time.sleep(chance.uniform(0, 0.15))
    if run.process.poll() is not None:
        return None
    roles = {name: found for name, found in run.roles().items() if found}
    if not roles:
        return None
    saving = run.saving()
    role = chance.choice(sorted(roles))
    number = chance.choice(SIGNALS)
    victim = chance.choice(roles[role])
    try:
        victim.send_signal(number)
    except psutil.NoSuchProcess:
        return None
    tally.while_saving += saving
    done = f"{signal.Signals(number).name} to {role}"
    tally.kills[done] += 1
    if number == signal.SIGSTOP and role == "sweep":
        time.sleep(2.0)
        victim.resume()
    return done


def newer(path: Path, begun: float) -> bool:
    """Return whether the file was written after `begun`."""
    return path.exists() and path.stat().st_mtime >= begun


def await_end(run: Run, done: str, tally: Tally) -> None:
    """Wait until the run has ended, or goes on if only its sweep was stopped for a moment."""
    begin = time.monotonic()
    went_on = done == "SIGSTOP to sweep"
    while time.monotonic() - begin < ENDING_S + 120.0 * went_on:
        left = run.members()
        if not left:
            break
        stopped = [p for p in left if p.pid == run.process.pid and status(p) == psutil.STATUS_STOPPED]
        if done == "SIGSTOP to torchrun" and stopped and len(left) == 1:
            run.process.kill()
        time.sleep(0.05)
    else:
        tally.left += [f"after {done}: {status(p)} {' '.join(words(p))[:200]}" for p in run.members()]
    if not went_on:
        tally.ended_s.append(time.monotonic() - begin)
    run.end()


def status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return "gone"


def words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def inspect(kind: Kind, root: Path, tally: Tally) -> dict[Path, int]:
    """Check all checkpoints of a run; return the newest step of each unfinished folder."""
    newest = {}
    for folder in kind.folders(root):
        steps = []
        for path in whole_checkpoints(folder / CHECKPOINTS):
            try:
                checkpoint = Checkpoint(path)
                checkpoint.check()
                steps.append(checkpoint.step)
            except ValueError as error:
                tally.unreadable.append(str(error))
        if not (folder / RECORD).exists():
            newest[folder] = max(steps, default=0)
    return newest


def check_finished(kind: Kind, root: Path, undisturbed: Path, tally: Tally) -> None:
    """Compare the weights of a finished run with those of the undisturbed one."""
    for ours, theirs in zip(kind.folders(root), kind.folders(undisturbed), strict=True):
        left, right = load_file(ours / MODEL), load_file(theirs / MODEL)
        same = left.keys() == right.keys() and all(
            left[name].numpy().tobytes() == right[name].numpy().tobytes() for name in left
        )
        if not same:
            tally.different.append(str(ours))
        record = read_record(ours)
        steps = [attempt.step for attempt in record.attempts]
        if steps != sorted(set(steps)):
            tally.lost_steps.append(f"{ours.name}: {steps}")


def storm(kills: int, seed: int, root: Path) -> Tally:
    """Disturb runs until there were `kills` disturbances and all runs have finished."""
    chance, tally = random.Random(seed), Tally()
    undisturbed = root / "undisturbed"
    undisturbed.mkdir()
    for kind in KINDS:
        run = Run(kind, undisturbed)
        if run.process.wait() != 0:
            raise RuntimeError(f"the undisturbed run {kind.name} failed: see {undisturbed / 'log'}")
        run.end()
    shared = set(os.listdir("/dev/shm"))
    number = 0
    while sum(tally.kills.values()) < kills:
        kind = KINDS[number % len(KINDS)]
        number += 1
        folder = root / "disturbed"
        folder.mkdir()
        go_through(kind, folder, chance, tally, kills)
        check_finished(kind, folder, undisturbed, tally)
        tally.finished += 1
        shutil.rmtree(folder)
    tally.shared_memory = len(set(os.listdir("/dev/shm")) - shared)
    return tally


def go_through(kind: Kind, root: Path, chance: random.Random, tally: Tally, kills: int) -> None:
    """Start and disturb a run until it has finished."""
    newest: dict[Path, int] = {}
    while not all((folder / RECORD).exists() for folder in kind.folders(root)):
        run = Run(kind, root)
        more = sum(tally.kills.values()) < kills
        done = disturb(run, chance, tally) if more else None
        if done is None:
            if run.process.wait(timeout=600) != 0:
                raise RuntimeError(f"an undisturbed attempt of {kind.name} failed: see {root / 'log'}")
            run.end()
        else:
            await_end(run, done, tally)
            print(f"{sum(tally.kills.values())}: {kind.name}, {done}", flush=True)
        check_starts(kind, root, newest, run.begun, tally)
        newest = inspect(kind, root, tally)


def check_starts(kind: Kind, root: Path, newest: dict[Path, int], begun: float, tally: Tally) -> None:
    """Check that the attempt which began at `begun` went on at the newest checkpoint."""
    for folder in kind.folders(root):
        if folder in newest and newer(folder / "starts", begun):
            tally.resumed_s.append(float((folder / "starts").read_text().split()[-1]) - begun)
            steps = attempts_since(folder, begun)
            if steps and steps[0] != newest[folder]:
                tally.lost_steps.append(f"{folder.name}: went on at {steps[0]}, not at {newest[folder]}")


def attempts_since(folder: Path, begun: float) -> list[int]:
    """Return the step of the attempt that started after `begun`, if it saved anything."""
    found = []
    if (folder / RECORD).exists():
        found = [read_record(folder).attempts]
    else:
        found = [Checkpoint(path).manifest.attempts for path in whole_checkpoints(folder / CHECKPOINTS)[:1]]
    return [
        attempt.step
        for attempts in found
        for attempt in attempts[-1:]
        if datetime.fromisoformat(attempt.started).timestamp() >= begun - 1.0
    ]


def report(tally: Tally) -> str:
    """Return the figures as text."""

    def times(values: list[float]) -> str:
        if not values:
            return "-"
        return f"median {statistics.median(values):.1f} s, largest {max(values):.1f} s"

    lines = [
        f"disturbances                       {sum(tally.kills.values())}, {tally.while_saving} of them while saving",
        *(f"    {what:30} {count}" for what, count in sorted(tally.kills.items())),
        f"runs that finished                 {tally.finished}",
        f"final weights that differ          {len(tally.different)}",
        f"unreadable checkpoints             {len(tally.unreadable)}",
        f"starts not at the newest one       {len(tally.lost_steps)}",
        f"processes left                     {len(tally.left)}",
        f"shared memory left                 {tally.shared_memory}",
        f"from the signal to the last end    {times(tally.ended_s)}",
        f"from the command to its start      {times(tally.resumed_s)}",
        *tally.different,
        *tally.unreadable,
        *tally.lost_steps,
        *tally.left,
    ]
    return "\n".join(lines)


def goodput(every_s: float, seed: int, root: Path) -> str:
    """Return how long a run takes with a worker killed every so many seconds, and without."""
    kind, chance = KINDS[1], random.Random(seed)
    extra = ("trainer.epochs=60", "trainer.checkpoint.every=10 steps")
    seconds = {}
    kills = 0
    for name in ("undisturbed", "disturbed"):
        folder = root / name
        folder.mkdir()
        run = Run(kind, folder, extra, restarts=100)
        begin = last = time.monotonic()
        while run.process.poll() is None:
            time.sleep(0.2)
            if (
                name == "disturbed"
                and time.monotonic() - last > every_s
                and (workers := run.roles()["worker"])
            ):
                chance.choice(workers).kill()
                kills += 1
                last = time.monotonic()
        seconds[name] = time.monotonic() - begin
        run.end()
    record = read_record(kind.folders(root / "disturbed")[0])
    return json.dumps(
        {
            **seconds,
            "kills": kills,
            "goodput": seconds["undisturbed"] / seconds["disturbed"],
            "restarts": record.restarts,
            "lost_s": record.lost_s,
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goodput", type=float, help="seconds between kills; measures nothing else")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="storm_"))
    if arguments.goodput:
        print(goodput(arguments.goodput, arguments.seed, root))
        return 0
    tally = storm(arguments.kills, arguments.seed, root)
    print(report(tally))
    wrong = (*tally.different, *tally.unreadable, *tally.lost_steps, *tally.left)
    if wrong or tally.shared_memory:
        print(f"see {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
