"""Finding the neighbours and connecting to them by Unix sockets.

Neighbours are workers of the same host (`hosts`) that can pass each other files in memory: they run on Linux, in
the same network namespace, to which the names of their sockets belong, and as the same user.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence

_RANK = struct.Struct("=q")
_CREDENTIALS = struct.Struct("=3i")
"""Process, user and group at the other end of a socket."""


def meeting_place() -> tuple[str, int] | None:
    """Return what workers of a host need in common to connect: network namespace and user.

    None where files in memory cannot be passed.
    """
    if not sys.platform.startswith("linux") or not hasattr(os, "memfd_create"):
        return None
    return os.readlink("/proc/self/ns/net"), os.getuid()


def neighbours_of(rank: int, host: Sequence[int], places: Sequence[tuple[str, int] | None]) -> frozenset[int]:
    """Return the workers of the host, besides `rank`, that it can connect to; `places` is by rank."""
    own = places[rank]
    return frozenset(peer for peer in host if peer != rank and own is not None and places[peer] == own)


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
