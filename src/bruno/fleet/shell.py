"""A raw shell line on an instance: facts read again, the link proved, then the line handed to bash there, byte for byte.

It is one argument of `bash -c`, so no other shell reads it; bash is what the guard reads it as. `timeout` ends it on the machine
even when the link is lost; Ctrl-C ends its whole process group over a second channel.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING

from bruno.errors import BrunoError
from bruno.fleet.acts import still_as_confirmed
from bruno.fleet.errors import FactsChanged, OutcomeUnknown
from bruno.fleet.host import Host
from bruno.fleet.models import Instance, State
from bruno.fleet.output import DRAIN_SECONDS, END_SECONDS, POLL_SECONDS, Ended, Hear, Limits, Lines, Stream
from bruno.fleet.vast import Vast
from bruno.guard.actions import RunCommand
from bruno.guard.command_acts import require_command
from bruno.guard.command_rules import CommandRules
from bruno.guard.permit import Permit

if TYPE_CHECKING:
    import paramiko

# Says which process it is (and, by `timeout`, which group), then becomes the command.
_WRAPPER = (
    'echo "$1 $$" >&2; if command -v timeout >/dev/null; then exec timeout -k 5 "$2" bash -c "$3"; fi; '
    'exec bash -c "$3"'
)
_MARGIN_SECONDS = 10.0
"""What the machine's own `timeout` is given before bruno ends the command from here."""
_CHUNK = 1 << 15


def run_command(
    vast: Vast,
    action: RunCommand,
    permit: Permit | None,
    now: datetime,
    *,
    connect: Callable[[Instance], Host],
    rules: CommandRules,
    git_remote: str,
    hear: Hear,
    cancel: Event,
) -> Ended:
    """Run the line on the instance and wait for its end.

    Args:
        permit: None is enough only for a line that the guard allows.
        connect: opens a link that has proved (host key, label file) to be this instance's.
        hear: called with every line of output. cancel: ends it, as Ctrl-C would.

    Raises:
        Denied: no permit that covers it, or a verdict that is stricter than the one shown. Nothing was run.
        FactsChanged (label, SSH port, status), InstanceGone, HostRefused, HostKeyChanged, WrongHost, Unreachable: the same.
        OutcomeUnknown: the link was lost after the line was sent: it may still be running.
    """
    require_command(action, permit, rules, git_remote, now=now)
    number = action.target.instance_id
    shown = still_as_confirmed(vast, action.target, f"nothing was run on instance {number}")
    if shown.state is not State.RUNNING:
        difference = f"status: confirmed running, now {shown.state.value}"
        raise FactsChanged(f"instance {number}: {difference}; nothing was run", differences=(difference,))
    with connect(shown) as host, host.channel("run a shell line") as channel:
        mark = secrets.token_hex(8)
        argv = ["bash", "-c", _WRAPPER, "bruno", mark, f"{action.seconds:g}", action.command]
        channel.exec_command(f"{shlex.join(argv)} < /dev/null")
        try:
            return _Followed(host, channel, mark, action.seconds, hear, cancel).to_the_end()
        except BrunoError as error:
            raise _unknown(number, str(error)) from error
        except (OSError, EOFError) as error:
            raise _unknown(number, f"the link to instance {number} was lost") from error


def _unknown(number: int, problem: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"{problem}; the command was sent, and how it ended is unknown",
        fix="It may still be running there: look before running it again",
        instance_id=number,
    )


class _Followed:
    """One command on its way."""

    def __init__(
        self, host: Host, channel: paramiko.Channel, mark: str, seconds: float, hear: Hear, cancel: Event
    ) -> None:
        self._host = host
        self._channel = channel
        self._mark = mark
        self._process = ""
        self._hear_line = hear
        self._out, self._err = Lines("stdout", hear), Lines("stderr", self._heard)
        self._limits = Limits(seconds + _MARGIN_SECONDS, cancel, self._tell)
        self._seconds = seconds
        self._started = time.monotonic()

    def to_the_end(self) -> Ended:
        """Hear it until it has ended.

        Raises: OutcomeUnknown, HostLost and what a broken socket raises.
        """
        channel, ended_at = self._channel, float("inf")
        while True:
            moved = self._read()
            if channel.exit_status_ready():
                ended_at = min(ended_at, time.monotonic())
                over = channel.eof_received or channel.closed or time.monotonic() - ended_at > DRAIN_SECONDS
                if over and not moved:
                    break
            elif channel.closed:
                raise EOFError("closed without an exit code")
            elif not self._limits.look():
                raise EOFError("it does not end")
            if not moved:
                time.sleep(POLL_SECONDS)
        self._out.end()
        self._err.end()
        code = channel.recv_exit_status()
        if code < 0:
            raise EOFError("ended without an exit code")
        if code in (124, 137) and time.monotonic() - self._started >= self._seconds:
            return Ended(124, "timed out")
        return self._limits.ended(code)

    def _read(self) -> bool:
        moved = False
        while self._channel.recv_ready():
            self._out.feed(self._channel.recv(_CHUNK))
            moved = True
        while self._channel.recv_stderr_ready():
            self._err.feed(self._channel.recv_stderr(_CHUNK))
            moved = True
        return moved

    def _heard(self, stream: Stream, line: str) -> None:
        """The wrapper's own line names the process; every other is the command's."""
        if not self._process and line.startswith(f"{self._mark} "):
            self._process = line.split(" ")[1]
        else:
            self._hear_line(stream, line)

    def _tell(self, name: str) -> None:
        """End its process group. Before the machine has said which process it is there is nothing to end."""
        if not self._process.isdigit():
            return
        group = f"kill -{name} -- -{self._process} 2>/dev/null || kill -{name} {self._process}"
        self._host.run(["bash", "-c", group], timeout=END_SECONDS)
