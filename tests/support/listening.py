"""Print, on worker 0, where the workers and their launcher listen, as JSON."""

from __future__ import annotations

import json
import os

import psutil

from parallel.config import ClusterConfig
from parallel.runtime.communication.opening import open_world


def addresses(process: int) -> list[str]:
    """Return the addresses on which a process listens for TCP."""
    every = psutil.Process(process).net_connections("tcp")
    return [one.laddr.ip for one in every if one.status == psutil.CONN_LISTEN]


if __name__ == "__main__":
    with open_world(ClusterConfig(device="cpu")) as world:
        own = world.gather(addresses(os.getpid()))
        if world.rank == 0:
            interface = os.environ.get("GLOO_SOCKET_IFNAME")
            found = {"launcher": addresses(os.getppid()), "workers": own, "interface": interface}
            print(json.dumps(found), flush=True)
