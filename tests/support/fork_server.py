"""A process that has imported what the commands need, and forks one for every command that it is asked to run.

`python -m tests.support.fork_server FOLDER` listens on FOLDER/socket and writes FOLDER/python, an executable that
takes the place of `sys.executable`. Called as `python -m module arguments`, it asks the server for a process, passes
its own arguments, environment, folder and standard streams on to it (`forked_python.py`), forwards signals to its
process group and ends with its exit code. A command so started differs from one started by the real interpreter only
in what is imported already, which saves the seconds of importing torch. `sys.executable` of the forked process is
FOLDER/python as well: torchrun's workers, a sweep's jobs and decoder processes are forked, too.

Such a process ends as an interpreter does everywhere if it has threads that still run then, as those of torch and gloo:
how a command ends with them is part of what is tested. With one thread, the interpreter would only clear all modules.
That copies most memory of the server and takes longer than many commands, so it is left out.

A client that is gone takes its process with it. The server ends, and all its processes with it, at the end of its
standard input, which is when the process that started it ends.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

PRELOAD = (
    "tests.support.small_network",
    "parallel.cli.torchrun",
    "torch.distributed.elastic.agent.server.local_elastic_agent",
    "torch._dynamo",
    "sklearn.datasets",
    "parallel.train",
    "parallel.training.trainer",
    "parallel.compare",
    "parallel.plan",
    "parallel.simulate",
    "parallel.calibrate",
    "parallel.evaluate",
    "parallel.verify",
    "parallel.verification.parity",
    "parallel.data.decoder",
)
LARGEST_REQUEST = 1 << 18


@dataclass(frozen=True)
class Request:
    """A command line `-m module arguments`, and where it runs."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    unbuffered: bool


class Server:
    """Forks a process for every request; returns from `serve` only in such a process."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._pids: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._ended, wakeup = socket.socketpair()
        for end in (self._ended, wakeup):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # not ignored, or there would be no exit codes
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        self._sockets = [listener, self._ended, wakeup]
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)

    def serve(self) -> Request | None:
        """Answer requests; return the request in the process forked for it, and None at the end of standard input."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    for pid in self._pids.values():
                        os.killpg(pid, signal.SIGKILL)
                    return None
                if key.fileobj is self._listener:
                    client, _ = self._listener.accept()
                    self._selector.register(client, selectors.EVENT_READ)
                elif key.fileobj is self._ended:
                    self._ended.recv(4096)
                    self._reap()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    request = self._answer(key.fileobj)
                    if request is not None:
                        return request

    def _answer(self, client: socket.socket) -> Request | None:
        """Fork for a request, which is returned in the new process; a client that is gone takes its process along."""
        message, descriptors, _, _ = socket.recv_fds(client, LARGEST_REQUEST, 3)
        if not message:
            self._selector.unregister(client)
            client.close()
            pid = self._pids.pop(client, None)
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)
            return None
        pid = os.fork()
        os.setpgid(pid, pid or os.getpid())  # by both, so that it has happened whichever comes first
        if pid == 0:
            self._leave(client)
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
            for descriptor in descriptors:
                os.close(descriptor)
            return Request(**json.loads(message))
        for descriptor in descriptors:
            os.close(descriptor)
        self._pids[client] = pid
        client.send(str(pid).encode())
        return None

    def _leave(self, client: socket.socket) -> None:
        """Close what belongs to the server, in a process that was forked from it."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._selector.close()
        for own in (*self._sockets, *self._pids, client):
            own.close()

    def _reap(self) -> None:
        """Send the exit codes of processes that ended: negative for the signal that ended one."""
        for client, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[client]
                self._selector.unregister(client)
                with client:
                    client.send(str(os.waitstatus_to_exitcode(status)).encode())


def become(request: Request, executable: str) -> str:
    """Make this process what `executable -m module arguments` would be; return the name of the module."""
    module, *arguments = request.arguments
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    tempfile.tempdir = None  # that of the request, if TMPDIR states one
    sys.executable = executable
    sys.orig_argv = [executable, "-m", module, *arguments]
    sys.argv = [module, *arguments]
    paths = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [request.folder, *(path for path in paths if path and path not in sys.path)]
    if request.unbuffered:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    sys.modules.pop(module, None)  # the real interpreter has not imported it either, and runpy would warn
    return module


def main(folder: Path) -> str | None:
    """Serve requests; return, in a forked process, the module that it is to run."""
    for name in PRELOAD:
        importlib.import_module(name)
    from parallel.cli.compose import compose_config  # after the small network is registered

    compose_config(["strategy=single"])  # fills the caches of Hydra's parser and of our schema
    gc.collect()
    gc.freeze()
    executable = folder / "python"
    executable.write_text(
        f"#!/bin/sh\nexec '{sys.executable}' -IS '{Path(__file__).with_name('forked_python.py')}' "
        f"'{folder / 'socket'}' '{sys.executable}' \"$@\"\n"
    )
    executable.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "bound"))
    listener.listen(64)
    os.rename(folder / "bound", folder / "socket")  # appears when all is ready
    request = Server(listener).serve()
    return None if request is None else become(request, str(executable))


def end_quickly(code: int) -> NoReturn:
    """End with an exit code, without clearing the modules."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    chosen = main(Path(sys.argv[1]))
    if chosen is not None:
        exit_code = 0
        # psutil counts the threads of C++, too.
        try:
            # Nothing else of the server is on the stack of the command.
            runpy.run_module(chosen, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            if not isinstance(ended.code, int) or psutil.Process().num_threads() > 1:
                raise
            exit_code = ended.code
        if psutil.Process().num_threads() == 1:
            end_quickly(exit_code)
