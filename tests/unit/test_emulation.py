"""Descriptions of emulated clusters, and the commands that make them; nothing is executed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from parallel.cli.emulation_arguments import parse
from parallel.config.process import Process
from parallel.config.quantities import parse_delay, parse_rate
from parallel.emulation import devices
from parallel.emulation.cluster import Cluster, require_system
from parallel.emulation.description import Description, Host, names, parse_percent, parse_workers, uniform
from parallel.emulation.holders import entrances, processes_of
from parallel.emulation.processors import Processors
from parallel.emulation.torchrun import _Agent, agent_command, command, variables
from parallel.results.environment import EMULATED, describe_emulated

PAIR = Description(hosts=(Host(rate="1gbit"), Host(rate="1gbit")))


def made(description: Description, processors: Processors | None = None) -> Cluster:
    """Return a cluster that does not exist; the process in host k has the number 100 + k."""
    hosts = tuple(Process(100 + host, 1) for host in range(len(description.hosts)))
    return Cluster(
        description=description, switch=Process(99, 1), hosts=hosts, owner=None, processors=processors
    )


@pytest.mark.parametrize(
    "text, bits", [("1gbit", 1e9), ("2.5gbit", 2.5e9), ("100mbit", 1e8), ("500kbit", 5e5)]
)
def test_rates(text: str, bits: float) -> None:
    assert parse_rate("rate", text) == bits


@pytest.mark.parametrize(
    "text", ["", "1", "gbit", "1Gbit", "1 gbit", "-1gbit", "0gbit", "1e3mbit", "1kbit", "200gbit", "1gbit;ls"]
)
def test_other_texts_are_no_rates(text: str) -> None:
    with pytest.raises(ValueError, match=f"^--rate={text} must be"):
        parse_rate("--rate", text)


def test_delays_percentages_and_workers() -> None:
    assert [parse_delay("d", text) for text in ("50us", "1.5ms", "1s")] == pytest.approx([5e-5, 1.5e-3, 1.0])
    assert [parse_percent("p", text) for text in ("50%", "1%", "100%", "12.5%")] == [0.5, 0.01, 1.0, 0.125]
    assert parse_workers("w", "2", 3) == (2, 2, 2)
    assert parse_workers("w", "2,1", 2) == (2, 1)
    assert parse_workers("w", "1,0,0", 3) == (1,)
    for text in ("0us", "2s", "50", "5min"):
        with pytest.raises(ValueError, match=f"d={text} must be"):
            parse_delay("d", text)
    for text in ("0%", "0.5%", "101%", "50", "half"):
        with pytest.raises(ValueError, match=f"p={text} must be a percentage"):
            parse_percent("p", text)
    for text in ("0", "2,1", "0,1,1", "1,0,1", "2,,1", "x", "1,1,1,1", "-1"):
        with pytest.raises(ValueError, match=f"w={text} must be a number of workers"):
            parse_workers("w", text, 3)


@pytest.mark.parametrize(
    "values, words",
    [
        ((0, None, None, 1), "at.hosts=0 must be at least 1 and at most 64"),
        ((65, None, None, 1), "at.hosts=65 must be"),
        (("2", None, None, 1), "at.hosts=2 must be a whole number"),
        ((True, None, None, 1), "at.hosts=True must be a whole number"),
        ((2, 1000, None, 1), "at.rate=1000 must be text with a unit"),
        ((2, "fast", None, 1), "at.rate=fast must be a rate such as 1gbit"),
        ((2, None, "1h", 1), "at.delay=1h must be a delay such as 50us"),
        ((2, None, None, 0), "--cores=0 must be at least 1"),
    ],
)
def test_invalid_clusters_are_rejected(values: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        uniform("at.", *values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "a" * 33, ".new-1-2"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="--name=.* must be at most 32 letters"):
        replace(PAIR, name=name)


def test_the_network_of_a_cluster_is_made_in_its_namespaces() -> None:
    assert devices.switch_commands([100, 101]) == [
        "link set lo up",
        "link add switch type bridge stp_state 0 mcast_snooping 0",
        "link set switch up",
        "link add port0 type veth peer name eth0 netns 100",
        "link set port0 master switch up",
        "link add port1 type veth peer name eth0 netns 101",
        "link set port1 master switch up",
    ]
    assert devices.host_commands(1) == [
        "link set lo up",
        "address add 10.77.0.2/16 dev eth0",
        "link set eth0 up",
    ]
    assert devices.cable_commands(1, up=False) == ["link set port1 down"]
    assert names(2).splitlines()[2:] == [
        "10.77.0.1 host0",
        "::ffff:10.77.0.1 host0",
        "10.77.0.2 host1",
        "::ffff:10.77.0.2 host1",
    ]


def test_links_are_shaped_for_rate_and_delay() -> None:
    tbf = "qdisc replace dev eth0 root handle 1: tbf rate 1000000000bit burst 70000 limit 2500000"
    assert devices.shaping_commands("eth0", Host(rate="1gbit"), None) == [tbf]
    assert devices.shaping_commands("eth0", Host(rate="1gbit"), "1.5ms") == [
        tbf,
        "qdisc replace dev eth0 parent 1:1 handle 2: netem delay 1500us limit 1000000",
    ]
    assert devices.shaping_commands("eth0", Host(), "50us") == [
        "qdisc replace dev eth0 root handle 2: netem delay 50us limit 1000000"
    ]
    assert devices.shaping_commands("eth0", Host(), None) == []
    slow = devices.shaping_commands("eth0", Host(rate="1mbit"), None)
    assert slow[0].endswith("rate 1000000bit burst 70000 limit 200000"), "room for some packets"


def test_an_agent_is_started_in_the_namespaces_and_the_control_group_of_its_host() -> None:
    agent = agent_command(1, (2, 1), ["-m", "parallel.train", "workers=3"])
    assert agent[1:] == [
        "-m",
        "parallel.emulation.agent",
        "--nnodes=2",
        "--node-rank=1",
        "--nproc-per-node=1",
        "--master-addr=10.77.0.1",
        "--master-port=29500",
        "-m",
        "parallel.train",
        "workers=3",
    ]
    cluster = made(PAIR, Processors(1, "/cpu/parallel-emulation-x"))
    line = command(cluster, 1, agent, "/a folder")
    assert line[:2] == ["sh", "-c"] and line[4] == "/cpu/parallel-emulation-x/host1"
    entered = line[5:]
    assert entered[:7] == ["nsenter", "--target=101", "--mount", "--uts", "--ipc", "--net", "--pid"]
    assert entered[-len(agent) - 1 :] == ["/a folder", *agent]
    assert command(made(PAIR), 1, agent, "/")[4] == "", "a system without control groups"


def test_what_runs_in_a_cluster_knows_it() -> None:
    cluster = made(PAIR.changed(1, rate="100mbit", speed="50%"))
    own = variables(cluster, 1, {"TORCHELASTIC_ERROR_FILE": "/e"})
    assert own["GLOO_SOCKET_IFNAME"] == "eth0" and own["TORCHELASTIC_ERROR_FILE"] == "/e.host1"
    assert "TORCHELASTIC_ERROR_FILE" not in variables(cluster, 0, {"TORCHELASTIC_ERROR_FILE": "/e"})
    link = json.loads(own[EMULATED])
    assert link == {
        "hosts": 2,
        "rate": ["1gbit", "100mbit"],
        "delay": None,
        "speed": ["100%", "50%"],
        "cores": 1,
    }
    assert describe_emulated(link) == "2 emulated hosts, rate 1gbit, 100mbit, speed 100%, 50%"
    assert describe_emulated(json.loads(PAIR.summary())) == "2 emulated hosts, rate 1gbit"
    assert replace(PAIR, delay="50us").words == "hosts=2,rate=1gbit,delay=50us"


def test_the_control_group_of_either_version_is_found(tmp_path: Path) -> None:
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("memory\n")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup2 {unified} cgroup2 rw 0 0\n")
    assert Processors.find("x", mounts) is None
    (unified / "cgroup.controllers").write_text("cpu memory\n")
    assert Processors.find("x", mounts) == Processors(2, f"{unified}/parallel-emulation-x")
    mounts.write_text(mounts.read_text() + f"cgroup {tmp_path} cgroup rw,cpu,cpuacct 0 0\n")
    assert Processors.find("x", mounts) == Processors(1, f"{tmp_path}/parallel-emulation-x")
    mounts.write_text("cgroup /nowhere cgroup rw,cpu,cpuacct 0 0\n")
    assert Processors.find("x", mounts) is None


@pytest.mark.parametrize(
    "cores, period, quota",
    [(0.5, "10000", "5000"), (2.0, "10000", "20000"), (0.01, "100000", "1000"), (None, "10000", None)],
)
def test_processor_time_is_limited(
    cores: float | None, period: str, quota: str | None, tmp_path: Path
) -> None:
    for version in (1, 2):
        processors = Processors(version, str(tmp_path / "root" / str(version)))
        processors.group(0).mkdir(parents=True)
        processors.make(1)
        processors.limit(0, cores)
        written = {path.name: path.read_text() for path in processors.group(0).iterdir()}
        if version == 2:
            assert written == {"cpu.max": f"{quota or 'max'} {period}"}
            assert (tmp_path / "root" / "cgroup.subtree_control").read_text() == "+cpu"
        else:
            assert written == {"cpu.cfs_quota_us": quota or "-1", "cpu.cfs_period_us": period}


def test_a_process_is_known_by_its_start_too() -> None:
    me = Process.of(os.getpid())
    assert me.lives
    other = replace(me, started=me.started - 1)
    assert not other.lives
    other.send(signal.SIGKILL)  # must not kill this process
    assert not Process(2**22 + 1, 1).lives


def test_a_holder_that_has_ended_has_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Process.of(os.getpid())
    reused = replace(me, started=me.started - 1)
    assert processes_of(reused) == entrances(reused) == []
    assert processes_of(me) == entrances(me) == [], "the namespace of this process is no host"
    read, lives = os.readlink, iter((True, False))
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]" if f"/{me.pid}/" in path else read(path))
    monkeypatch.setattr(Process, "lives", property(lambda process: next(lives)))
    assert processes_of(reused) == [], "it ended while its namespace was read"


def test_a_signal_for_an_agent_that_has_ended_is_dropped() -> None:
    agent = _Agent(0, ["true"], os.environ)
    agent.process.wait()
    agent.send(2)
    agent.hang_up()
    agent.finish()


def test_arguments_of_the_command() -> None:
    given = parse(None, ["run", "--hosts", "2", "--rate=1gbit", "--", "-m", "parallel.train", "--cfg", "job"])
    assert (given.hosts, given.rate, given.workers_per_host) == (2, "1gbit", "1")
    assert given.torchrun == ["-m", "parallel.train", "--cfg", "job"]
    assert parse(None, ["link", "2", "--down"]).up is False
    assert parse(None, ["link", "2", "--rate", "1gbit"]).up is None
    assert parse(None, ["host", "2", "--kill"]).signal == "kill"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["up"],
        ["up", "--hosts", "x"],
        ["nope"],
        ["link", "1", "--up", "--down"],
        ["host", "1"],
        ["run", "--hosts", "2"],
        ["host", "1", "--slow", "50%", "--kill"],
    ],
)
def test_invalid_arguments_are_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="^[^\\n]*: see `python -m parallel.emulate.*--help`$"):
        parse(None, arguments)


def test_a_cluster_needs_root_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program == "tc" else program)
    with pytest.raises(ValueError, match="needs tc, of the package iproute2"):
        require_system()
    monkeypatch.setattr(shutil, "which", lambda program: program)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ValueError, match="needs root"):
        require_system()
