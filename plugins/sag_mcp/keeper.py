"""Stands between the hub and one MCP server's process, so that nothing of it is left behind, whatever ends the hub.

A program of its own (`python -I -S keeper.py LIFELINE COMMAND …`), with nothing of sag. It starts the command in a
process group of its own, hands it standard input, output and error, and waits. When the command ends, what is left
of its descendants is killed. When the lifeline ends, a pipe that the hub alone holds, the hub wants the command to go
or was killed itself: the command has lost its input, gets a moment, then SIGTERM, then SIGKILL. A byte on the lifeline
means SIGKILL at once. Descendants that left the group are found as well, for orphans become the keeper's own children
(Linux: PR_SET_CHILD_SUBREAPER). Should the keeper itself be killed, the kernel kills the command (Linux:
PR_SET_PDEATHSIG). It exits with the command's status, 128 + the signal where one ended it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

QUIT_S = 2.0  # from the end of its input to SIGTERM
TERM_S = 1.5  # from there to SIGKILL
KILL_S = 1.0  # for the kernel to do it
LAST_FD = max(os.sysconf("SC_OPEN_MAX"), 4096)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def set_process(option: int, value: int) -> None:
    """prctl(2), where there is one."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def spawn(command: list[str]) -> int:
    """Start the command in a group of its own; gives its id."""
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child does the same, and whoever is first wins
            os.setpgid(pid, pid)
        return pid
    try:
        os.setpgid(0, 0)
        set_process(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        if os.environ.get("LC_CTYPE") == "C.UTF-8":  # Python put it there by itself (PEP 538)
            del os.environ["LC_CTYPE"]
        os.closerange(3, LAST_FD)
        os.execvp(command[0], command)
    except OSError as e:
        os.write(2, f"{command[0]}: {e.strerror}\n".encode())
    finally:
        os._exit(127)


def descendants() -> set[int]:
    """All processes below this one (Linux); zombies are none."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    parents[int(name)] = int(parent)
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        above = todo.pop()
        below = [pid for pid, parent in parents.items() if parent == above and pid not in found]
        found.update(below)
        todo += below
    return found


def tell(pid: int, number: int) -> bool:
    """Signal the command's group and all descendants; whether there was anybody."""
    anybody = False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
        anybody = True
    for other in descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(other, number)
            anybody = True
    return anybody


class Keeper:
    """One command being looked after."""

    def __init__(self, lifeline: int, command: list[str]) -> None:
        set_process(PR_SET_CHILD_SUBREAPER, 1)
        self.lifeline = lifeline
        os.closerange(3, lifeline)
        os.closerange(lifeline + 1, LAST_FD)
        self.wake, wake = os.pipe()
        for fd in (self.wake, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.pid = spawn(command)
        self.status: int | None = None
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # whoever reads them learns that the command closed them
            os.dup2(nothing, fd)

    def reap(self) -> None:
        """Take note of who ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    code = os.waitstatus_to_exitcode(status)
                    self.status = 128 - code if code < 0 else code

    def wait(self, seconds: float | None) -> bytes | None:
        """Until the command ends (None), the time is over (None) or the lifeline says something (a byte, or none)."""
        until = None if seconds is None else time.monotonic() + seconds
        listening = seconds is None
        while True:
            self.reap()
            left = None if until is None else until - time.monotonic()
            if self.status is not None or (left is not None and left <= 0):
                return None
            ready, _, _ = select.select([self.wake, *([self.lifeline] if listening else ())], [], [], left)
            if self.wake in ready:
                os.read(self.wake, 512)
            if self.lifeline in ready:
                return os.read(self.lifeline, 1)

    def run(self) -> int:
        """Until nothing is left; gives the status to exit with."""
        word = self.wait(None)
        if self.status is None and word == b"":
            self.wait(QUIT_S)
            if self.status is None:
                tell(self.pid, signal.SIGTERM)
                self.wait(TERM_S)
        until = time.monotonic() + KILL_S
        while tell(self.pid, signal.SIGKILL) and time.monotonic() < until:
            time.sleep(0.01)
            self.reap()
        return self.status if self.status is not None else 137


if __name__ == "__main__":
    sys.exit(Keeper(int(sys.argv[1]), sys.argv[2:]).run())
