"""Emulated clusters with real namespaces: what hosts share, links, leftovers, torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from parallel.config.process import Process
from parallel.emulation import cluster as clusters
from parallel.emulation.cluster import Cluster, find, require_delay, sweep, temporary, up
from parallel.emulation.description import uniform
from parallel.emulation.holders import batch, kill_until_gone, processes_of
from parallel.results.environment import EMULATED
from tests.support.commands import Start
from tests.support.emulated import holders, interfaces, need_emulation, remove_all, said, use_folder
from tests.support.waiting import wait_for

LISTEN = (
    "import socket; s = socket.create_server(('', 7)); print('up', flush=True); s.accept()[0].send(b'hello')"
)
# The argument: seconds for each of the addresses of host0. The second one is the first as an IPv6
# address, and is tried if the first cannot be reached, as for a moment after the cable is joined.
ASK = """
import ipaddress, socket, sys
s = socket.create_connection(("host0", 7), float(sys.argv[1]))
address = ipaddress.ip_address(s.getpeername()[0])
print(s.recv(9), getattr(address, "ipv4_mapped", None) or address)
"""
# Makes a cluster that ends with this process; waits in the function that it is told, or at the end.
MAKE = """
import sys, time
from parallel.emulation import cluster, description
def wait(*arguments):
    print("waits", flush=True)
    time.sleep(600)
if sys.argv[2]:
    setattr(cluster, sys.argv[2], wait)
with cluster.temporary(description.uniform("", 2, "1gbit", None, 1, sys.argv[1])):
    wait()
"""
# Runs a command with a folder that nobody else sees and that ends with it.
PRIVATE = 'mount -t tmpfs tmpfs "$1" && shift && exec "$@"'
# Sweeps a cluster all of whose process numbers are those of another process now. A sweep that takes
# the namespace of that process for a host kills all processes in it, so this needs one of its own.
STALE = """
import dataclasses, os, subprocess, sys
from parallel.emulation import cluster
from parallel.emulation.description import uniform
from parallel.config.process import Process
assert os.getpid() == 1
other = subprocess.Popen(["sleep", "600"])
ended = dataclasses.replace(Process.of(other.pid), started=1)
stale = cluster.Cluster(
    description=uniform("", 1, None, None, 1, "stale"),
    switch=ended, hosts=(ended,), owner=None, processors=None,
)
stale.folder.mkdir()
cluster._write(stale, stale.folder)
print(cluster.sweep(), other.poll(), stale.folder.exists())
other.kill()
"""
# A worker without torch: says where it is, and waits if it is told so.
WORKER = """
import json, os, socket, sys, time
rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
hosts = json.loads(os.environ["PARALLEL_EMULATED"])["hosts"]
open(f"{sys.argv[1]}/rank{rank}", "w").write(f"{world} {socket.gethostname()} {hosts}")
if os.environ["GROUP_RANK"] == "1":
    print(f"error: {os.environ['GLOO_SOCKET_IFNAME']}", file=sys.stderr)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a cluster; nothing of it may be left after the test."""
    need_emulation()
    before = interfaces()
    made = use_folder(tmp_path / "state", monkeypatch)
    yield made
    remove_all()
    assert interfaces() == before
    assert holders() == set()
    assert list(Path("/sys/fs/cgroup").glob(f"*/*{made}*")) == []
    assert list((tmp_path / "state").glob("*")) == []


def made(name: str, rate: str | None = "1gbit") -> Cluster:
    return up(uniform("", 2, rate, None, 1, name))


def test_hosts_share_files_but_no_memory_name_or_network(name: str, tmp_path: Path) -> None:
    with temporary(uniform("", 2, "1gbit", None, 1, name)) as cluster:
        first, second = cluster.hosts
        assert (said(first, "hostname"), said(second, "hostname")) == ("host0", "host1")
        said(first, "touch", "/dev/shm/x", str(tmp_path / "x"))
        assert said(second, "ls", "/dev/shm") == ""
        assert not Path("/dev/shm/x").exists()
        assert (tmp_path / "x").exists()
        assert said(second, "ls", "/sys/class/net", namespaces=("net",)) != ""  # of the machine
        shaped = [said(second, "tc", "qdisc", "show", "dev", "eth0")]
        shaped += [said(cluster.switch, "tc", "qdisc", "show", "dev", "port1", namespaces=("net",))]
        assert all("tbf" in text and "rate 1Gbit" in text for text in shaped)
        assert len(said(first, "ps", "-e", "-o", "pid=").splitlines()) <= 4, "only its own processes"


def test_a_cable_is_cut_and_joined(name: str) -> None:
    cluster = made(name)
    with subprocess.Popen(
        ["nsenter", f"--target={cluster.hosts[0].pid}", "--net", sys.executable, "-c", LISTEN],
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None and server.stdout.readline() == b"up\n"
        cluster = cluster.link(1, up=False)
        assert said(cluster.hosts[1], sys.executable, "-c", ASK, "2") == ""
        assert not find(name).description.hosts[1].up
        cluster = cluster.link(1, up=True, rate="100mbit")
        assert said(cluster.hosts[1], sys.executable, "-c", ASK, "20") == "b'hello' 10.77.0.1"
    assert "rate 100Mbit" in said(cluster.hosts[1], "tc", "qdisc", "show", "dev", "eth0")
    find(name).remove()
    assert sweep() == []


def test_a_delay_needs_netem(name: str) -> None:
    try:
        require_delay("--delay", "50us")
    except ValueError as error:
        assert str(error) == "--delay=50us needs netem, which this kernel does not have"
        with pytest.raises(ValueError, match="--delay=50us needs netem"):
            up(uniform("", 2, "1gbit", "50us", 1, name))
        return
    cluster = up(uniform("", 2, "1gbit", "50us", 1, name))
    assert "delay 50us" in said(cluster.hosts[0], "tc", "qdisc", "show", "dev", "eth0")


def test_a_host_is_slowed_where_the_system_can(name: str) -> None:
    cluster = made(name)
    if cluster.processors is None:
        with pytest.raises(ValueError, match="--slow needs the control group cpu"):
            cluster.slow(1, "50%")
        return
    cluster = cluster.slow(1, "50%")
    limits = [path.read_text() for path in cluster.processors.group(1).glob("cpu.[cm]*[ax]*")]
    assert any("5000" in text for text in limits)
    assert find(name).description.hosts[1].speed == "50%"


def test_two_clusters_cannot_have_one_name(name: str) -> None:
    made(name)
    with pytest.raises(ValueError, match=f"--name={name} is the name of another cluster"):
        made(name)
    find(name).remove()
    with pytest.raises(ValueError, match=f"--name={name} is no cluster that is up; there is none"):
        find(name)


@pytest.mark.parametrize("where", ["names", "_write", "_connect", ""])
def test_nothing_is_left_of_a_cluster_whose_maker_was_killed(where: str, name: str) -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKE, name, where], stdout=subprocess.PIPE)
    assert maker.stdout is not None and maker.stdout.readline() == b"waits\n"
    assert where != "" or len(holders()) > 0
    maker.kill()
    maker.communicate()
    wait_for(lambda: holders() == set(), 10)
    assert sweep() == []


def test_a_failure_while_it_is_made_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cluster: Cluster) -> None:
        raise ValueError("no")

    monkeypatch.setattr(clusters, "_connect", fail)
    with pytest.raises(ValueError, match="no"):
        made(name)
    assert holders() == set()


def run_workers(
    start: Start, folder: Path, name: str, seconds: float, code: int = 0
) -> subprocess.Popen[str]:
    (folder / "worker.py").write_text(WORKER)
    words = ["--name", name, "--workers-per-host", "2,1", "--", str(folder / "worker.py"), str(folder)]
    return start(
        "parallel.emulate",
        "run",
        *words,
        str(seconds),
        str(code),
        environment={clusters.FOLDER: os.environ[clusters.FOLDER]},
        real=True,
    )


def ranks(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("rank*"))]


def test_torchrun_runs_on_all_hosts(name: str, start: Start, tmp_path: Path) -> None:
    cluster = made(name)
    process = run_workers(start, tmp_path, name, 0.0)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert ranks(tmp_path) == ["3 host0 2", "3 host0 2", "3 host1 2"]
    assert err.splitlines().count("host1: error: eth0") == 1
    assert [processes_of(host) for host in cluster.hosts] == [[], []]


@pytest.mark.parametrize("sent, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_leaves_no_process(
    sent: signal.Signals, code: int, name: str, start: Start, tmp_path: Path
) -> None:
    cluster = made(name)
    process = run_workers(start, tmp_path, name, 600.0)
    wait_for(lambda: len(ranks(tmp_path)) == 3 or process.poll() is not None)
    with pytest.raises(ValueError, match=f"cluster {name} is in use by another run"), cluster.running():
        pass
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == code
    if sent == signal.SIGKILL:
        wait_for(lambda: [processes_of(host) for host in cluster.hosts] == [[], []], 60)
    assert [processes_of(host) for host in cluster.hosts] == [[], []]


def test_what_a_killed_run_leaves_is_removed_by_the_next_command(name: str) -> None:
    cluster = made(name)
    process = enter(cluster)
    with cluster.running():
        sweep()
        assert len(processes_of(cluster.hosts[0])) == 1, "a run that goes on is left alone"
    sweep()
    assert process.wait(10) != 0


def enter(cluster: Cluster) -> subprocess.Popen[bytes]:
    """Start a process of a run in host 0."""
    process = subprocess.Popen(
        ["nsenter", f"--target={cluster.hosts[0].pid}", "--pid", "sleep", "600"],
        env=os.environ | {EMULATED: "{}"},
    )
    wait_for(lambda: len(processes_of(cluster.hosts[0])) == 1, 10)
    return process


def state_of(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_processes_that_got_the_numbers_of_a_cluster_are_left_alone(tmp_path: Path) -> None:
    need_emulation()
    own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", PRIVATE, "private"]
    done = subprocess.run(
        [*own, str(tmp_path), sys.executable, "-c", STALE],
        env=os.environ | {clusters.FOLDER: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[] None False\n", done.stderr
    assert list(tmp_path.iterdir()) == [], "no sweep of the machine's processes may see that state"


@pytest.mark.parametrize("then", ["nothing", "kill", "sweep"])
def test_a_stopped_host_whose_run_was_killed_is_removed(then: str, name: str) -> None:
    cluster = made(name)
    entrance = enter(cluster)
    cluster.signal(0, "stop")
    wait_for(lambda: state_of(entrance) == "T", 10)
    if then == "kill":
        cluster.signal(0, "kill")
    elif then == "sweep":
        sweep()
        assert entrance.wait(10) != 0, "the sweep ends what is left of the run"
    cluster.remove()
    assert entrance.wait(10) != 0


def test_a_stopped_host_is_continued(name: str) -> None:
    cluster = made(name)
    entrance = enter(cluster)
    cluster.signal(0, "stop")
    wait_for(lambda: state_of(entrance) == "T", 10)
    cluster.signal(0, "continue")
    wait_for(lambda: state_of(entrance) == "S", 10)
    cluster.signal(0, "kill")
    assert entrance.wait(10) != 0


def test_a_cluster_that_cannot_be_removed_does_not_concern_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stuck, other = made(f"{name}a"), made(f"{name}b")
    (clusters.state_folder() / "gone").mkdir()  # the state was removed by hand
    stuck.switch.send(signal.SIGKILL)
    wait_for(lambda: not stuck.lives, 10)

    def kill(processes: Sequence[Process], entrances: Sequence[Process] = ()) -> None:
        if stuck.switch in processes:
            raise ValueError("processes [7] have not ended")
        kill_until_gone(processes, entrances)

    with monkeypatch.context() as patched:
        patched.setattr(clusters, "kill_until_gone", kill)
        assert sweep() == [other]
        words = f"what is left of {name}a cannot be removed: processes [7] have not ended"
        assert capsys.readouterr().err == f"warning: {words}\n"
        find(f"{name}b").remove()
    (clusters.state_folder() / "gone").rmdir()
    assert sweep() == []


def test_commands_at_the_same_time_keep_the_changes_of_each_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = made(name)
    cuts, goes_on = threading.Event(), threading.Event()

    def cut(holder: Process, program: str, commands: Sequence[str]) -> None:
        if program == "ip":
            cuts.set()
            goes_on.wait(60)
        batch(holder, program, commands)

    monkeypatch.setattr(clusters, "batch", cut)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(find(name).link, 0, up=False)
        cuts.wait(60)
        second = threads.submit(cluster.link, 1, rate="100mbit")
        third = threads.submit(sweep)
        wait([second, third], 1)  # they would be done by then if they did not wait
        goes_on.set()
        for change in (first, second, third):
            change.result(60)
    hosts = find(name).description.hosts
    assert not hosts[0].up and hosts[1].rate == "100mbit"


def test_a_sweep_does_not_take_a_cluster_from_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = made(name)
    swept, goes_on = threading.Event(), threading.Event()

    def end_run(cluster: Cluster) -> None:
        swept.set()
        goes_on.wait(60)

    def run() -> None:
        with cluster.running():
            pass

    monkeypatch.setattr(Cluster, "end_run", end_run)
    with ThreadPoolExecutor() as threads:
        sweeping = threads.submit(sweep)
        swept.wait(60)
        running = threads.submit(run)
        wait([running], 1)
        goes_on.set()
        sweeping.result(60)
        running.result(60)


def test_a_cluster_that_was_removed_is_not_taken_for_a_later_one_with_its_name(name: str) -> None:
    removed = made(name)
    removed.remove()
    with pytest.raises(ValueError, match=f"cluster {name} has been removed"):
        removed.link(0, up=False)
    later = made(name)
    removed.remove()
    with pytest.raises(ValueError, match=f"cluster {name} has been removed"), removed.running():
        pass
    assert sweep() == [later]
