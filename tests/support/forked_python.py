"""The client of `fork_server.py`: what runs as `python` in its place. Started with -IS, it imports little.

    forked_python.py SOCKET REAL_PYTHON [-u] -m module arguments

Anything else than `-m` (as `-c`) is left to the real interpreter. Signals are forwarded; SIGSTOP cannot be, so SIGTSTP
stops the process.
"""

import json
import os
import signal
import socket
import sys

SAME = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
FORWARDED = {number: number for number in SAME} | {signal.SIGTSTP: signal.SIGSTOP}


def main() -> int:
    address, real, *arguments = sys.argv[1:]
    unbuffered = arguments[:1] == ["-u"]
    if arguments[unbuffered:][:1] != ["-m"]:
        os.execv(real, [real, *arguments])
    request = json.dumps(
        {
            "arguments": arguments[unbuffered + 1 :],
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "unbuffered": unbuffered,
        }
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until there is a process to forward them to
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    socket.send_fds(server, [request.encode()], [0, 1, 2])
    pid = int(server.recv(32))
    for number in FORWARDED:
        signal.signal(number, lambda sent, frame: os.killpg(pid, FORWARDED[sent]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    for descriptor in (0, 1, 2):
        os.close(descriptor)  # or a pipe would stay open when the process closes its end
    code = int(server.recv(32) or -signal.SIGKILL)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    os._exit(main())
