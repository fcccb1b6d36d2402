"""The description of an emulated cluster, and the text forms of its numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, cast

from parallel.config import require, require_number
from parallel.config.quantities import parse_delay, parse_rate

MOST_HOSTS = 64
MOST_CORES = 1024


def parse_percent(name: str, text: str) -> float:
    """Return the part, from 0.01 to 1, of `50%`."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)%", text)
    ok = match is not None and 1 <= float(match[1]) <= 100
    require(ok, name, text, "must be a percentage from 1% to 100%, such as 50%")
    return float(text[:-1]) / 100


def parse_workers(name: str, text: str, hosts: int) -> tuple[int, ...]:
    """Return the workers of each host that has any: `2` for every host, or `2,1` with a number for
    each. Only the last hosts may have none: `2,0`."""
    words = text.split(",")
    numbers = tuple(int(word) for word in words if re.fullmatch("[0-9]{1,4}", word))
    used = tuple(number for number in numbers if number > 0)
    ok = len(numbers) == len(words) in (1, hosts) and 0 < len(used) and used == numbers[: len(used)]
    rule = f"must be a number of workers, or one for each of the hosts, {hosts}, such as 2,1"
    require(ok, name, text, rule)
    return used * hosts if len(words) == 1 else used


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host and its link to the switch."""

    rate: str | None = None
    """Bits per second of the link, in each direction: `1gbit`. None: not limited."""
    up: bool = True
    """Whether the cable is plugged in."""
    speed: str = "100%"
    """Processor time of the host's processes in percent of its cores; 100%: not limited."""

    def __post_init__(self) -> None:
        if self.rate is not None:
            parse_rate("--rate", self.rate)
        parse_percent("--slow", self.speed)


@dataclass(frozen=True, kw_only=True)
class Description:
    """A cluster as its user describes it."""

    name: str = "default"
    hosts: tuple[Host, ...]
    delay: str | None = None
    """Time that a packet takes from one host to another, in addition to that of the machine."""
    cores: int = 1
    """Cores of a host, the unit of `Host.speed`."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,31}", self.name) is not None,
            "--name",
            self.name,
            "must be at most 32 letters, digits, - and _, the first a letter or digit",
        )
        require_number("--hosts", len(self.hosts), 1, MOST_HOSTS)
        require_number("--cores", self.cores, 1, MOST_CORES)
        if self.delay is not None:
            parse_delay("--delay", self.delay)

    def host(self, number: int) -> Host:
        """Return a host. Raises `ValueError` if there is none of this number."""
        last = len(self.hosts) - 1
        require(0 <= number <= last, "host", number, f"is not in cluster {self.name}, which has 0 to {last}")
        return self.hosts[number]

    def changed(self, number: int, **values: Any) -> Description:
        """Return the description with these values of one host."""
        host = dataclasses.replace(self.host(number), **values)
        hosts = (*self.hosts[:number], host, *self.hosts[number + 1 :])
        return dataclasses.replace(self, hosts=hosts)

    @property
    def words(self) -> str:
        """The options that describe it, as text for a folder's name: `hosts=2,rate=1gbit`."""
        first = self.hosts[0]
        parts = {"hosts": len(self.hosts), "rate": first.rate, "delay": self.delay}
        return ",".join(f"{name}={value}" for name, value in parts.items() if value is not None)

    def summary(self) -> str:
        """Return what a record keeps of the cluster, as JSON: a value for all hosts, or a list."""

        def common(values: list[Any]) -> Any:
            return values[0] if len(set(values)) == 1 else values

        return json.dumps(
            {
                "hosts": len(self.hosts),
                "rate": common([host.rate for host in self.hosts]),
                "delay": self.delay,
                "speed": common([host.speed for host in self.hosts]),
                "cores": self.cores,
            }
        )


def uniform(
    prefix: str, hosts: object, rate: object, delay: object, cores: object, name: str = "default"
) -> Description:
    """Return a cluster of equal hosts from values of unknown types.

    `prefix` precedes their names in messages. Raises `ValueError` for one of a wrong type.
    """
    for key, value in (("hosts", hosts), ("cores", cores)):
        require(type(value) is int, f"{prefix}{key}", value, "must be a whole number")
    for key, value, example in (("rate", rate, "1gbit"), ("delay", delay, "50us")):
        ok = value is None or isinstance(value, str)
        require(ok, f"{prefix}{key}", value, f"must be text with a unit, such as {example}")
    if isinstance(rate, str):
        parse_rate(f"{prefix}rate", rate)
    if isinstance(delay, str):
        parse_delay(f"{prefix}delay", delay)
    require_number(f"{prefix}hosts", cast(int, hosts), 1, MOST_HOSTS)
    return Description(
        name=name,
        hosts=(Host(rate=cast("str | None", rate)),) * cast(int, hosts),
        delay=cast("str | None", delay),
        cores=cast(int, cores),
    )


def address(host: int) -> str:
    """Return the IP address of a host, of a subnet that exists only in the namespaces."""
    return f"10.77.0.{host + 1}"


def names(hosts: int) -> str:
    """Return the /etc/hosts of a cluster."""
    own = "".join(
        f"{prefix}{address(host)} host{host}\n"
        for host in range(hosts)
        for prefix in ("", "::ffff:")  # torch asks for the names of IPv4 addresses on IPv6 sockets
    )
    return f"127.0.0.1 localhost\n::1 localhost\n{own}"
