"""Finding the neighbours, the workers of the same host, and connecting to them by Unix sockets."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_RANK = struct.Struct("=q")
_CREDENTIALS = struct.Struct("=3i")
"""Process, user and group at the other end of a socket."""


def place() -> tuple[str, ...] | None:
    """Return what neighbours have in common, or None where files cannot be shared."""
    if not sys.platform.startswith("linux") or not hasattr(os, "memfd_create"):
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname(), boot, os.readlink("/proc/self/ns/net"), str(os.getuid())


def connect(
    rank: int, peers: frozenset[int], gather: Callable[[bytes], list[bytes]], barrier: Callable[[], None]
) -> Mapping[int, socket.socket]:
    """Return a socket to each of `peers`. All workers call it, also those without peers.

    `gather` returns every worker's value by rank. A worker connects to those of lower rank.
    """
    if not peers:  # on a system that may not have such sockets
        gather(b"")
        barrier()
        return {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # the kernel chooses a free name; it is not in the file system
        listener.listen(max(1, 2 * len(peers)))
        names = gather(listener.getsockname())
        sockets: dict[int, socket.socket] = {}
        for peer in sorted(peers):
            if peer < rank:
                sockets[peer] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sockets[peer].connect(names[peer])
                sockets[peer].send(_RANK.pack(rank))
        barrier()  # all have connected: no accept blocks
        while len(sockets) < len(peers):
            accepted, _ = listener.accept()
            if _user(accepted) != os.getuid():  # anybody on this host may connect
                accepted.close()
                continue
            (peer,) = _RANK.unpack(accepted.recv(_RANK.size))
            sockets[peer] = accepted
    return sockets


def _user(connected: socket.socket) -> int:
    """Return the user at the other end."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
