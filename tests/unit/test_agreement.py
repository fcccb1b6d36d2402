"""What workers of several hosts compare before they start: fingerprints, clocks, data, interfaces."""

from __future__ import annotations

import dataclasses
import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore

from parallel.cli import agreement
from parallel.cli.agreement import agree, clock_warning, measure_offsets, unpickles
from parallel.cli.compose import compose_config
from parallel.cli.fingerprint import OWN_SETTINGS, Fingerprint, fingerprint, refuse_differences
from parallel.cli.ranks import Ranks
from parallel.config import printable
from parallel.runtime.communication.interface import (
    Endpoint,
    choose_interface,
    chosen_interface,
    find_endpoint,
    interface_towards,
)
from parallel.runtime.failure.blame import ABSENT, State
from parallel.runtime.failure.host_names import boot_id
from parallel.training.same_data import refuse_other_data

LIMIT = timedelta(seconds=60)
A = Fingerprint(
    "a",
    {"parallel/plan.py": "1", "parallel/x.py": "2"},
    {"torch": "2.13.0"},
    {"trainer.lr": 0.01, "workers": 3},
)


def of_b(**changes: Any) -> Fingerprint:
    return dataclasses.replace(A, host="b", **changes)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            of_b(files={"parallel/plan.py": "3", "parallel/x.py": "2"}),
            "host b (workers 1, 2) has other code than host a (worker 0): parallel/plan.py differs",
        ),
        (
            of_b(files={"parallel/plan.py": "1", "parallel/y.py": "2"}),
            "host b (workers 1, 2) has other code than host a (worker 0): "
            "parallel/x.py is missing there, parallel/y.py is missing here",
        ),
        (
            of_b(files={str(i): "1" for i in range(9)}),
            "host b (workers 1, 2) has other code than host a (worker 0): "
            "0 is missing here, 1 is missing here, 2 is missing here, and 8 more",
        ),
        (
            of_b(versions={"torch": "2.11.0"}),
            "host b (workers 1, 2) has other versions than host a (worker 0): torch is 2.11.0 there and 2.13.0 here",
        ),
        (
            of_b(settings={"trainer.lr": 0.1, "workers": 3}),
            "host b (workers 1, 2) has other settings than host a (worker 0): trainer.lr is 0.1 there and 0.01 here",
        ),
    ],
)
def test_the_host_and_the_difference_are_named(other: Fingerprint, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        refuse_differences([A, other, other])
    assert str(error.value) == sentence


def test_a_problem_of_one_host_is_told_to_all() -> None:
    other = of_b(problem="GLOO_SOCKET_IFNAME=x must be …", settings={})
    with pytest.raises(ValueError, match=r"^host b \(workers 1, 2\): GLOO_SOCKET_IFNAME=x must be …$"):
        refuse_differences([A, other, other])
    everyone = dataclasses.replace(A, problem="no GPU")
    with pytest.raises(ValueError, match="^no GPU$"):
        refuse_differences([everyone, everyone])


def test_equal_workers_are_accepted() -> None:
    refuse_differences([A, of_b(), A])


def test_a_fingerprint_has_all_code_and_no_setting_that_hosts_choose() -> None:
    own = fingerprint(compose_config(["workers=2", "cluster.threads=1"]))
    assert {"parallel/plan.py", "parallel/program/lowering.py", "parallel/models/alexnet.py"} <= set(
        own.files
    )
    other = fingerprint(compose_config(["workers=2", "cluster.threads=2", "tracker=none"]))
    assert own.settings == other.settings and "trainer.lr" in own.settings
    assert own.settings != fingerprint(compose_config(["workers=2", "trainer.lr=0.3"])).settings
    assert Fingerprint.decode(own.encode()) == own


def test_settings_that_hosts_choose_exist() -> None:
    config = dataclasses.asdict(compose_config(["data=imagenet"]))
    for key in OWN_SETTINGS:
        group, _, name = key.partition(".")
        assert group in config and (not name or name in config[group]), key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"host": 1}',
        A.encode() + "x",
        json.dumps({**json.loads(A.encode()), "more": 1}),
    ],
)
def test_a_text_that_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Fingerprint.decode(text)


def test_escapes_from_another_host_do_not_reach_the_terminal() -> None:
    with pytest.raises(ValueError) as error:
        refuse_differences([A, dataclasses.replace(of_b(settings={"\x1b[2J": "\x1b"}), host="\x1b")])
    assert printable(str(error.value)) == str(error.value)


@pytest.mark.parametrize(
    ("offset", "uncertainty", "words"),
    [
        (7.25, 0.001, "the clock of host b is 7.2 s ahead of that of host a"),
        (-3600.0, 0.001, "the clock of host b is 3600.0 s behind that of host a"),
        (4.0, 0.001, None),
        (7.0, 3.0, None),
    ],
)
def test_clocks_apart_are_worth_a_warning(offset: float, uncertainty: float, words: str | None) -> None:
    sentence = clock_warning("b", "a", offset, uncertainty)
    assert sentence is None if words is None else words in str(sentence)


def test_a_clock_is_measured_over_the_store(monkeypatch: Any) -> None:
    class Clock:
        """Of which the other worker's is a minute ahead."""

        @staticmethod
        def time() -> float:
            return 1000.0 + (60.0 if threading.current_thread().name == "other" else 0.0)

    monkeypatch.setattr(agreement, "time", Clock)
    store = HashStore()
    other = threading.Thread(target=measure_offsets, args=(store, 2, [2], LIMIT), name="other")
    other.start()
    assert measure_offsets(store, 0, [2], LIMIT) == {2: (60.0, 0.0)}
    other.join(10)
    assert measure_offsets(store, 1, [2], LIMIT) == {}


UUID = "6f1c6a4e-3c8f-4a55-9d0c-0b1b9f0c7a11"


@pytest.mark.parametrize(
    ("run", "launcher", "expected"),
    [
        ("none", "python -m parallel.torchrun --nproc-per-node 2", False),
        ("none", "torchrun --nnodes 2 --master-addr a --master-port 1", False),
        (UUID, "torchrun --standalone --nproc-per-node 2", True),
        (UUID, "torchrun --nproc-per-node 2", True),
        ("none", "torchrun --nnodes 1:2 --rdzv-backend c10d", True),
        ("mine", "torchrun --rdzv_backend=c10d", True),
    ],
)
def test_a_launcher_that_unpickles_is_recognised(run: str, launcher: str, expected: bool) -> None:
    assert unpickles({"TORCHELASTIC_RUN_ID": run}, launcher.split()) is expected


@pytest.mark.parametrize(("run", "warnings"), [(UUID, 1), ("run-mine", 0)])
def test_one_worker_of_a_launcher_that_unpickles_prints_a_warning(
    run: str, warnings: int, capsys: pytest.CaptureFixture[str]
) -> None:
    agree(Ranks(launched=True, environment={"TORCHELASTIC_RUN_ID": run}), compose_config([]))
    assert capsys.readouterr().err.count("warning: torchrun was started with its c10d rendezvous") == warnings


DATA = {"name": "digits", "training images": "1,000", "training labels": "abc"}


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (
            [
                ("a", "", DATA),
                ("b", "", {**DATA, "training images": "1,200"}),
                ("b", "", {**DATA, "training images": "1,200"}),
            ],
            "host b (workers 1, 2) has other data than host a (worker 0): training images 1,200 there, 1,000 here",
        ),
        ([("a", "no folder x", {}), ("b", "no folder x", {})], "no folder x"),
        ([("a", "", DATA), ("b", "no folder x", {})], "host b (worker 1): no folder x"),
        ([("a", "no folder x", {}), ("b", "", DATA)], "host a (worker 0): no folder x"),
    ],
)
def test_other_data_is_named(answers: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        refuse_other_data(answers)
    assert str(error.value) == sentence


def test_the_same_data_is_accepted() -> None:
    refuse_other_data([("a", "", DATA), ("b", "", dict(DATA))])


def test_the_interface_leads_to_the_store() -> None:
    loopback = interface_towards("127.0.0.1")
    environment: dict[str, str] = {}
    choose_interface("gloo", "127.0.0.1", environment)
    assert environment == {"GLOO_SOCKET_IFNAME": loopback}
    environment = {}
    choose_interface("nccl", "127.0.0.1", environment)
    assert environment == {"NCCL_SOCKET_IFNAME": f"={loopback}"}


def test_an_interface_that_is_stated_is_kept_if_it_exists() -> None:
    stated = {"GLOO_SOCKET_IFNAME": interface_towards("127.0.0.1") or ""}
    environment = dict(stated)
    choose_interface("gloo", "192.0.2.1", environment)
    assert environment == stated
    with pytest.raises(
        ValueError, match="GLOO_SOCKET_IFNAME=none7 must be an interface of this host, which has"
    ):
        choose_interface("gloo", "127.0.0.1", {"GLOO_SOCKET_IFNAME": "none7"})


def at(interface: str, *addresses: str, network: str = "boot net:[1]") -> Endpoint:
    return Endpoint("GLOO_SOCKET_IFNAME", network, interface, addresses)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (
            at("lo", "127.0.0.1"),
            at("lo", "127.0.0.1", network="other"),
            "host a (worker 0) listens on lo, address 127.0.0.1, where host b (workers 1, 2) can't reach it: "
            "GLOO_SOCKET_IFNAME must name an interface of the network between them",
        ),
        (
            at("eth0", "192.0.2.1"),
            at("eth0,lo", "192.0.2.2", "::1", network="other"),
            "host b (workers 1, 2) listens on eth0,lo, address ::1, where host a (worker 0) can't reach it: "
            "GLOO_SOCKET_IFNAME must name an interface of the network between them",
        ),
        (
            at("docker0", "172.17.0.1"),
            at("br0", "172.17.0.1", network="other"),
            "host a (worker 0) and host b (workers 1, 2) have the same address, 172.17.0.1 on docker0 and br0: "
            "GLOO_SOCKET_IFNAME must name an interface of the network between them",
        ),
        (at("lo", "127.0.0.1"), at("lo", "127.0.0.1"), None),
        (at("eth0", "192.0.2.1"), at("eth0", "192.0.2.2", network="other"), None),
        (at("ens"), at("ens", network="other"), None),  # NCCL takes beginnings of names
    ],
)
def test_an_address_that_other_hosts_cannot_reach_is_refused(
    first: Endpoint, second: Endpoint, sentence: str | None
) -> None:
    of_a, of_other = dataclasses.replace(A, endpoint=first), of_b(endpoint=second)
    if sentence is None:
        refuse_differences([of_a, of_other, of_other])
        return
    with pytest.raises(ValueError) as error:
        refuse_differences([of_a, of_other, of_other])
    assert str(error.value) == sentence


def test_a_worker_tells_where_it_listens() -> None:
    loopback = interface_towards("127.0.0.1") or ""
    own = find_endpoint("gloo", "127.0.0.1", {})
    assert (own.variable, own.interface, own.addresses) == ("GLOO_SOCKET_IFNAME", loopback, ("127.0.0.1",))
    assert own.network.startswith(boot_id())
    assert find_endpoint("nccl", "192.0.2.1", {"NCCL_SOCKET_IFNAME": f"={loopback}"}).addresses == (
        "127.0.0.1",
    )
    assert Fingerprint.decode(dataclasses.replace(A, endpoint=own).encode()).endpoint == own


def test_the_interface_that_was_chosen() -> None:
    variables = {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "=lo"}
    assert chosen_interface("gloo", variables) == "eth7"
    assert chosen_interface("nccl", variables) == "lo"
    assert chosen_interface("nccl", {}) is None, "NCCL does not tell"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"\xff",
        b"{}",
        b'{"beat": 1}',
        ABSENT.encode().replace("0.0", "1e999").encode(),
        ABSENT.encode().replace('"beat": 0', '"beat": "0"').encode(),
        ABSENT.encode().replace("the start", "x" * 20_000).encode(),
        ABSENT.encode().replace("}", ', "__class__": 1}').encode(),
    ],
)
def test_a_text_in_the_store_that_is_no_state_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        State.decode(text)


def test_a_state_shows_no_escapes() -> None:
    state = dataclasses.replace(ABSENT, where="\x1b[2J", doing="\x07")
    read = State.decode(state.encode().encode())
    assert (read.where, read.doing) == ("\\x1b[2J", "\\x07")
