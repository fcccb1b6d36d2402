"""All workers name a worker that dies, is stopped or hangs, and no process is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from parallel.cli.process_tree import MARK, marked
from parallel.runtime.failure.blame import (
    ABSENT,
    ABSENT_S,
    BROKEN_S,
    SILENT_S,
    State,
    Symptom,
    find_blame,
    read_refusal,
    refusal,
)
from parallel.runtime.failure.host_names import describe_host, numbered_host, workers_per_host
from parallel.runtime.failure.running_clock import RunningClock
from tests.support.altered_runs import ALTERED, SMALL, epochs
from tests.support.commands import Run, Start
from tests.support.gpu import needs_two_gpus
from tests.support.waiting import wait_for

BUSY = State(beat=7, where="step 17", doing="computing", seconds=0.1, waits=False, told=False, done=False)
WAITS = replace(
    BUSY, doing="waiting for worker 1: exchange 3 of micro-batch 0, forward", seconds=3.0, waits=True
)
LOADS = replace(BUSY, doing="loading data", seconds=3.2)
WAITED = Symptom(0.1, broken=False, waiting_for=WAITS.doing)
BROKE = Symptom(0.1, broken=True, waiting_for=WAITS.doing)
FRESH = {0: 0.0, 1: 0.1, 2: 0.1}


def test_a_silent_worker_is_to_blame_after_the_timeout_and_sooner_if_there_is_trouble() -> None:
    states = {0: WAITS, 1: BUSY, 2: WAITS}
    assert find_blame(0, states, {**FRESH, 1: 4.9}, 5.0, None) is None
    assert "worker 1 does not answer: no sign of life for 5.1 s, the last one in step 17" in str(
        find_blame(0, states, {**FRESH, 1: 5.1}, 5.0, None)
    )
    assert find_blame(0, states, {**FRESH, 1: SILENT_S - 0.1}, 5.0, BROKE) is None
    assert "worker 1 is gone" in str(find_blame(0, states, {**FRESH, 1: SILENT_S}, 5.0, BROKE))
    assert "worker 1 is gone" in str(find_blame(0, states, {**FRESH, 1: SILENT_S}, 5.0, None, told=True))
    assert find_blame(0, {**states, 1: replace(BUSY, done=True)}, {**FRESH, 1: 60.0}, 5.0, None) is None


def test_a_worker_that_never_joined_is_to_blame_after_a_slow_start() -> None:
    states = {0: BUSY, 1: ABSENT, 2: BUSY}
    assert find_blame(0, states, {**FRESH, 1: ABSENT_S - 0.1}, 5.0, None) is None
    assert "worker 1 does not answer: no sign of life for 30.1 s, since the start" == find_blame(
        0, states, {**FRESH, 1: ABSENT_S + 0.1}, 5.0, None
    )
    assert find_blame(0, states, {**FRESH, 1: 60.0}, 70.0, None) is None
    assert "worker 1 is gone" in str(find_blame(0, states, {**FRESH, 1: SILENT_S}, 5.0, None, told=True))


def test_a_worker_that_rejects_its_input_is_named_on_other_hosts() -> None:
    blame = refusal(1, "run_dir=a must be …")
    hosts = {0: "0 a", 1: "1 b", 2: "1 b"}
    assert read_refusal(blame, hosts, "1 b") == "run_dir=a must be …"
    assert read_refusal(blame, hosts, "0 a") == "host 1 (b, worker 1): run_dir=a must be …"
    assert read_refusal(blame, {1: ""}, "0 a") == "worker 1: run_dir=a must be …"
    assert read_refusal("worker 1 failed in step 1: invalid input of worker 1: x", hosts, "0 a") is None


def test_a_host_is_to_blame_if_all_its_workers_are_silent() -> None:
    on = [replace(BUSY, host=host) for host in ("0 a", "1 b", "1 b", "2 c")]
    states = dict(enumerate(on))
    fresh = {0: 0.0, 1: 0.1, 2: 0.1, 3: 0.1}
    assert "host 1 (b, workers 1, 2) does not answer: no sign of life for 5.1 s, the last" in str(
        find_blame(0, states, {**fresh, 1: 5.1, 2: 4.1}, 5.0, None)
    )
    assert str(find_blame(0, states, {**fresh, 1: 5.1, 2: 3.9}, 5.0, None)).startswith("worker 1 does not")
    assert str(find_blame(2, states, {**fresh, 1: 5.1}, 5.0, None)).startswith("worker 1 does not answer")
    assert "host 2 (c, worker 3) is gone: " in str(find_blame(0, states, {**fresh, 3: 2.0}, 5.0, BROKE))
    alone = find_blame(1, states, {0: 5.1, 1: 0.0, 2: 0.1, 3: 5.0}, 5.0, None)
    assert "host 1 (b, workers 1, 2) is cut off, or host 0 (a, worker 0) and host 2 (c, worker 3) do" in str(
        alone
    )
    one_of_two = find_blame(0, {0: on[0], 1: on[1]}, {0: 0.0, 1: 5.1}, 5.0, None)
    assert str(one_of_two).startswith("host 1 (b, worker 1) does not answer")


def test_all_workers_that_never_joined_are_named() -> None:
    states = {0: BUSY, 1: ABSENT, 2: BUSY, 3: ABSENT}
    late = find_blame(0, states, {0: 0.0, 1: 31.0, 2: 0.1, 3: 31.0}, 5.0, None)
    assert late == "workers 1, 3 do not answer: no sign of life for 31.0 s, since the start"


def test_a_host_of_which_no_worker_joined_is_named_by_the_launchers_number() -> None:
    def blame(absent: set[int], per_host: int, told: bool = False) -> str:
        states = {rank: ABSENT if rank in absent else BUSY for rank in range(6)}
        silent = {rank: 31.0 if rank in absent else 0.1 for rank in states}
        found = find_blame(0, states, silent, 5.0, None, told, per_host)
        return str(found).partition(":")[0]

    assert blame({2, 3}, 2) == "host 1 (workers 2, 3) does not answer"
    assert blame({1}, 1) == "host 1 (worker 1) does not answer"
    assert blame({2, 3, 4, 5}, 2) == "host 1 (workers 2, 3) and host 2 (workers 4, 5) do not answer"
    assert blame({2, 3, 4}, 2) == "workers 2, 3, 4 do not answer"
    assert blame({2, 3}, 0) == "workers 2, 3 do not answer"
    assert blame({2}, 2) == "worker 2 does not answer"
    both = "host 1 (workers 2, 3) and host 2 (workers 4, 5) are gone"
    assert blame({2, 3, 4, 5}, 2, told=True) == both
    assert workers_per_host(3, 4, {"GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "2"}) == 2
    assert workers_per_host(3, 5, {"GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "2"}) == 0
    assert workers_per_host(3, 4, {"GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}) == 0
    assert workers_per_host(3, 4, {}) == 0


def test_hosts_are_numbered_by_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node\x1b7")
    assert numbered_host({"GROUP_RANK": "2"}) == "2 node\\x1b7"
    assert numbered_host({"GROUP_RANK": "1"}) == "1 node\\x1b7"
    assert numbered_host({}) == "node\\x1b7"
    assert describe_host("2 node17", [4, 5]) == "host 2 (node17, workers 4, 5)"
    assert describe_host("node17", [4]) == "host node17 (worker 4)"


def test_the_clock_stands_still_while_its_process_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = RunningClock()
    begun = clock()
    for seconds, read in ((0.5, 0.5), (1.5, 2.0), (60.0, 2.0), (0.5, 2.5), (7.0, 2.5)):
        now += seconds
        assert clock() - begun == read


def test_of_the_living_the_one_that_does_not_wait_is_to_blame() -> None:
    chain = {0: WAITS, 1: replace(WAITS, doing="waiting for worker 2: gradients of bucket 0"), 2: LOADS}
    assert (
        "worker 2 has not reached the point where others wait for it: in step 17 it has been loading data "
        "for 3.2 s"
    ) in str(find_blame(0, chain, FRESH, 3.0, WAITED))
    assert find_blame(0, chain, FRESH, 3.0, None) is None
    ring = {0: WAITS, 1: replace(WAITS, doing="waiting for worker 0: barrier")}
    assert "all workers wait for each other" in str(find_blame(0, ring, FRESH, 3.0, WAITED))


def test_a_living_worker_that_broke_a_connection_may_say_why_first() -> None:
    states = {0: WAITS, 1: BUSY}
    assert find_blame(0, states, FRESH, 3.0, BROKE) is None
    assert "though all workers live" in str(
        find_blame(0, states, FRESH, 3.0, replace(BROKE, seconds=BROKEN_S))
    )


def ranks_of(mark: str) -> dict[int, int]:
    """Return the process ids of the workers of a torchrun by rank."""
    found = {}
    for pid in marked(mark):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found.update({int(entry[5:]): pid for entry in environment if entry.startswith(b"RANK=")})
    return found


@pytest.mark.parametrize(
    "sent, world, words",
    [(signal.SIGKILL, 3, "is gone"), (signal.SIGSTOP, 2, "does not answer")],
    ids=["killed", "stopped"],
)
def test_all_others_name_a_worker_that_was(
    sent: signal.Signals, world: int, words: str, start: Start, tmp_path: Path
) -> None:
    process = start(
        "parallel.torchrun",
        f"--nproc-per-node={world}",
        "-m",
        ALTERED,
        *SMALL,
        "trainer.epochs=100000",
        environment={MARK: tmp_path.name},
        real=sent == signal.SIGSTOP,  # the others find a stopped worker among the children of torchrun
    )
    wait_for(lambda: epochs(tmp_path) > 2 or process.poll() is not None, 400)
    assert process.poll() is None
    os.kill(ranks_of(tmp_path.name)[1], sent)
    began = time.monotonic()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert time.monotonic() - began < 30, "torchrun alone waits 30 s for a stopped worker"
    for rank in {*range(world)} - {1}:
        assert re.search(
            rf"^error: worker {rank} ends in .*: worker 1 {words}: no sign of life for \d+\.\d s, "
            r"the last one in (step \d+|the |warm-up)",
            err,
            re.M,
        ), err
    wait_for(lambda: marked(tmp_path.name) == [], 10)
    assert list(tmp_path.rglob("record.json")) == []


@pytest.mark.parametrize("strategy", ["data_parallel", "ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_worker_that_hangs_is_named_by_all_and_by_itself(
    strategy: str, torchrun: Run, tmp_path: Path
) -> None:
    began = time.monotonic()
    hang = {MARK: tmp_path.name, "ALTER": "hang"}
    done = torchrun(2, ALTERED, *SMALL, f"strategy={strategy}", environment=hang)
    assert done.returncode == 1
    assert time.monotonic() - began < 300
    for rank in range(2):
        assert re.search(
            rf"^error: worker {rank} ends in step 1: worker 1 has not reached the point where "
            r"others wait for it: in step 1 it has been loading data for \d+\.\d s "
            r"\(cluster.timeout_s=3\)",
            done.stderr,
            re.M,
        ), done.stderr
    wait_for(lambda: marked(tmp_path.name) == [], 10)


def test_a_device_that_hangs_is_named_and_the_host_that_waits_for_it_closes_its_files(
    torchrun: Run, tmp_path: Path
) -> None:
    """The devices are imitated. Only an abort of the communicators ends the wait of worker 0's host."""
    began = time.monotonic()
    done = torchrun(2, ALTERED, *SMALL, environment={MARK: tmp_path.name, "ALTER": "device"})
    assert done.returncode == 1
    assert time.monotonic() - began < 200
    for rank in range(2):
        assert re.search(
            rf"^error: worker {rank} ends in step 1: worker 1 has not reached the point where others wait for it: "
            r"in step 1 it has been computing for \d+\.\d s \(cluster.timeout_s=3\)$",
            done.stderr,
            re.M,
        ), done.stderr
    assert [path.name for path in tmp_path.rglob("closed-*")] == ["closed-0"], (
        "the other host is blocked for ever"
    )
    wait_for(lambda: marked(tmp_path.name) == [], 10)


@needs_two_gpus
@pytest.mark.parametrize("alteration, doing", [("hang", "loading data"), ("kernel", "computing")])
def test_a_worker_that_hangs_on_gpus_is_named_and_the_other_closes_its_files(
    alteration: str, doing: str, torchrun: Run, tmp_path: Path
) -> None:
    hang = {MARK: tmp_path.name, "ALTER": alteration}
    done = torchrun(2, ALTERED, *SMALL, "cluster.device=cuda", environment=hang)
    assert done.returncode == 1
    for rank in range(2):
        assert re.search(
            rf"^error: worker {rank} ends in step \d: worker 1 has not reached the point where others wait for it: "
            rf"in step 1 it has been {doing} for",
            done.stderr,
            re.M,
        ), done.stderr
    if alteration == "kernel":
        assert [path.name for path in tmp_path.rglob("closed-*")] == ["closed-0"]
    wait_for(lambda: marked(tmp_path.name) == [], 10)


def test_a_device_without_free_memory_is_named_in_a_sentence(torchrun: Run, tmp_path: Path) -> None:
    done = torchrun(2, ALTERED, *SMALL, environment={MARK: tmp_path.name, "ALTER": "memory"})
    assert done.returncode == 1
    failed = "worker 1 failed in step 1: CUDA out of memory: Tried to allocate 2.00 GiB, GPU 0 has a total capacity"
    assert re.search(f"^error: {failed}", done.stderr, re.M), done.stderr
    assert re.search(f"^error: worker 0 ends in step 1: {failed}", done.stderr, re.M), done.stderr
    assert "OutOfMemoryError" not in done.stderr  # no traceback
    wait_for(lambda: marked(tmp_path.name) == [], 10)


def test_a_long_backward_inside_ddp_is_no_hang(torchrun: Run, tmp_path: Path) -> None:
    """It takes longer than cluster.timeout_s, but no worker waits for another before it ends."""
    options = ("strategy=ddp", "trainer.epochs=1", "cluster.timeout_s=3")
    done = torchrun(2, ALTERED, *SMALL, *options, environment={"ALTER": "slow"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "alteration, words",
    [
        ("absent", r"does not answer: no sign of life for \d+\.\d s, since the start"),
        ("early", r"is gone: no sign of life for \d+\.\d s, the last one in the start \(opening the data\)"),
    ],
)
def test_a_worker_lost_before_the_first_step_is_named(
    alteration: str, words: str, torchrun: Run, tmp_path: Path
) -> None:
    done = torchrun(3, ALTERED, *SMALL, environment={MARK: tmp_path.name, "ALTER": alteration})
    assert done.returncode == 1
    for rank in (0, 2):
        assert re.search(rf"^error: worker {rank} ends in the start: worker 1 {words}", done.stderr, re.M), (
            done.stderr
        )
    wait_for(lambda: marked(tmp_path.name) == [], 10)


def test_a_job_that_was_stopped_as_a_whole_goes_on(start: Start, tmp_path: Path) -> None:
    """It is stopped for longer than the timeout, while worker 0 waits in gloo for worker 1."""
    process = start(
        "parallel.torchrun",
        "--nproc-per-node=2",
        "-m",
        ALTERED,
        *SMALL,
        "trainer.epochs=100000",
        "cluster.shared_memory=false",
        environment={MARK: tmp_path.name},
    )
    wait_for(lambda: epochs(tmp_path) > 2 or process.poll() is not None, 400)
    worker = ranks_of(tmp_path.name)[1]
    others = set(marked(tmp_path.name)) - {worker}
    assert process.poll() is None and len(others) == 2
    os.kill(worker, signal.SIGTSTP)
    time.sleep(0.5)
    written = epochs(tmp_path)
    for sent, seconds in ((signal.SIGTSTP, 6), (signal.SIGCONT, 0.5)):
        for pid in others:
            os.kill(pid, sent)
        time.sleep(seconds)
    assert epochs(tmp_path) <= written + 1, "it was not stopped"
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: epochs(tmp_path) > written + 20 or process.poll() is not None, 60)
    time.sleep(4)  # for a timeout after the pause
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTSTP], ids=["killed", "stopped"])
def test_without_the_launcher_all_end(sent: signal.Signals, start: Start, tmp_path: Path) -> None:
    process = start(
        "parallel.torchrun",
        "--nproc-per-node=2",
        "-m",
        ALTERED,
        *SMALL,
        "trainer.epochs=100000",
        environment={MARK: tmp_path.name},
    )
    wait_for(lambda: bool(list(tmp_path.rglob("epochs.csv.part"))) or process.poll() is not None, 400)
    wait_for(lambda: len(ranks_of(tmp_path.name)) == 2, 60)
    process.send_signal(sent)
    wait_for(lambda: set(marked(tmp_path.name)) <= {process.pid}, 120)
    process.kill()
    _, err = process.communicate()
    for rank in range(2):
        assert re.search(rf"^error: worker {rank} ends in .*: the store at .* does not answer", err, re.M), (
            err
        )
