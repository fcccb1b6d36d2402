"""A key-value store that listens on one address of this host.

torch's `TCPStore` listens on all interfaces, whatever host it is given. It also takes a socket that
is listening already, which is bound here to the address alone.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Variable that torchrun sets to "True" for its workers: the store is there, and all connect to it."""
CONNECT_S = 5.0
RETRY_S = 0.1
BACKLOG = 4096
"""Connections that wait to be accepted: all workers of a large run start at once."""


def serve_store(host: str, port: int, timeout: timedelta, *, for_others: bool = False) -> TCPStore:
    """Return the server of a new store at `host`, a name or an address; port 0: any free port.

    Raises `ValueError` if `host` is unknown or not this host, or the port is in use or not
    permitted, or if the store is `for_others` and `host` is a name that only this host knows as
    itself: on Debian the host's own name is 127.0.1.1.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"the host {host} can't be found: {error.strerror}") from error
    own = str(address[0])
    if for_others and host not in (own, "localhost") and ipaddress.ip_address(own).is_loopback:
        raise ValueError(
            f"--master-addr={host} is {own} on this host, which no other host reaches: give its address on the "
            "network"
        )
    try:
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(
                f"--master-addr={host} is not an address of this host: give one that it has, on node rank 0"
            ) from error
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} of {host} is in use by another program: choose another with --master-port or MASTER_PORT"
            ) from error
        raise ValueError(f"port {port} of {host} can't be opened: {error.strerror}") from error
    number = listener.getsockname()[1]
    return TCPStore(
        host,
        number,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),  # from now on the store's
    )


def connect_store(
    host: str, port: int, timeout: timedelta, waits: Callable[[str], None] = lambda for_what: None
) -> TCPStore:
    """Return a client of the store at `host`.

    `waits` is called again and again, with the reason, while there is no answer. Raises `ValueError`
    if it can't be reached in time: the server may start later.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:  # torch's client would print a stack trace at each try
        try:
            socket.create_connection((host, port), CONNECT_S).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"the store of rank 0 can't be reached at {host}:{port} within {timeout.total_seconds():g} s: "
                    f"{error}"
                ) from None
            waits(f"the store of rank 0 at {host}:{port} ({error})")
            time.sleep(RETRY_S)
    return TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
