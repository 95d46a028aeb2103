"""One command or shell on an instance, between an SSH channel and a real process. Needs asyncssh.

Data is pumped by hand: asyncssh's `process.redirect()` gives spurious -1 exits with paramiko clients. The rules are
sshd's: without a terminal the channel closes when the process has ended *and* nobody holds its output any more; a client
that goes away leaves the process alive with its pipes closed; with a terminal it is hung up.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import termios
import threading
from typing import Any

import asyncssh

from bruno.sandbox import processes
from bruno.sandbox.folder import InstanceFolder

_CHUNK = 65_536
_DRAIN_SECONDS = 0.2  # for what a terminal still holds after its session's leader has ended
_GONE = (OSError, asyncssh.Error)


class _PipeWriter(asyncio.Protocol):
    """The writing end of a process's standard input, with back-pressure."""

    transport: asyncio.WriteTransport

    def __init__(self) -> None:
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # connect_write_pipe gives a write transport

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 asyncio's signature
        self.closed = True
        self._room.set()

    async def write(self, data: bytes) -> None:
        """Write, and wait while the process does not read. Data for a process that no longer reads is dropped."""
        if not self.closed:
            self.transport.write(data)
            await self._room.wait()


async def serve(process: asyncssh.SSHServerProcess[bytes], folder: InstanceFolder, file_size_limit: int | None) -> None:
    """Run what the client asked for until it ends or the client goes away. Raises nothing the connection could die of."""
    if process.subsystem:
        _finish(process, 1)
        return
    try:
        session = _Session(process, folder, file_size_limit)
    except OSError as error:
        process.stderr.write(f"sandbox: cannot start a process: {error}\n".encode())
        _finish(process, 255)
        return
    await session.run()


class _Session:
    """A started process with its pipes or its terminal."""

    def __init__(self, process: asyncssh.SSHServerProcess[bytes], folder: InstanceFolder, limit: int | None) -> None:
        self.process = process
        self.folder = folder
        self.terminal = process.term_type is not None
        self._transports: list[Any] = []
        argv = ["/bin/bash", "-c", process.command] if process.command is not None else ["/bin/bash", "-l"]
        environment = _environment(process, folder)
        if self.terminal:
            self._master, slave = os.openpty()
            theirs, self._ours = (slave, slave, slave), (os.dup(self._master), self._master)
            self._resize()
        else:
            (in_r, in_w), (out_r, out_w), (err_r, err_w) = os.pipe(), os.pipe(), os.pipe()
            theirs, self._ours = (in_r, out_w, err_w), (in_w, out_r, err_r)
        try:
            self.child = processes.start(
                folder, argv, streams=theirs, environment=environment, terminal=self.terminal, file_size_limit=limit
            )
        except OSError:
            for fd in self._ours:
                os.close(fd)
            raise
        finally:
            for fd in set(theirs):
                os.close(fd)

    async def run(self) -> None:
        """Carry data both ways; report the exit status when the session is over."""
        exited = _exited(self.child)
        if self.terminal and self.process.command is None and self.folder.motd.is_file():
            self.process.stdout.write(self.folder.motd.read_bytes().replace(b"\n", b"\r\n"))
        stdin = await self._open_writer(self._ours[0])
        readers = [await self._open_reader(fd) for fd in self._ours[1:]]
        outputs = [self.process.stdout, self.process.stderr]
        pumps = [asyncio.create_task(self._carry_out(r, w)) for r, w in zip(readers, outputs, strict=False)]
        feeder = asyncio.create_task(self._carry_in(stdin))
        gone = asyncio.create_task(self.process.channel.wait_closed())
        over = asyncio.create_task(self._over(exited, pumps))
        try:
            await asyncio.wait({over, gone}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                _finish(self.process, exited.result())
        finally:
            for task in (*pumps, feeder, gone, over):
                task.cancel()
            for transport in self._transports:
                transport.close()

    async def _over(self, exited: asyncio.Future[int], pumps: list[asyncio.Task[None]]) -> None:
        await exited
        if self.terminal:  # somebody in the background may hold the terminal for ever; sshd does not wait for them
            await asyncio.wait(pumps, timeout=_DRAIN_SECONDS)
        else:
            await asyncio.wait(pumps)

    async def _open_reader(self, fd: int) -> asyncio.StreamReader:
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        self._transports.append(transport)
        return reader

    async def _open_writer(self, fd: int) -> _PipeWriter:
        loop = asyncio.get_running_loop()
        transport, writer = await loop.connect_write_pipe(_PipeWriter, os.fdopen(fd, "wb", buffering=0))
        self._transports.append(transport)
        return writer

    async def _carry_out(self, reader: asyncio.StreamReader, channel: asyncssh.SSHWriter[bytes]) -> None:
        try:
            while data := await reader.read(_CHUNK):
                channel.write(data)
                await channel.drain()
        except _GONE:  # the client left, or (EIO) the last holder of the terminal did
            return

    async def _carry_in(self, stdin: _PipeWriter) -> None:
        while True:
            try:
                data = await self.process.stdin.read(_CHUNK)
            except asyncssh.TerminalSizeChanged:
                self._resize()
                continue
            except asyncssh.BreakReceived:
                self._signal("INT")
                continue
            except asyncssh.SignalReceived as received:
                self._signal(received.signal)
                continue
            except _GONE:
                return
            if not data:
                break
            await stdin.write(data)
        if not self.terminal:
            stdin.transport.close()

    def _signal(self, name: str) -> None:
        number = getattr(signal, f"SIG{name}", None)
        if number is not None and self.child.poll() is None:
            os.killpg(self.child.pid, number)

    def _resize(self) -> None:
        if self.terminal:
            width, height, across, down = self.process.term_size
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, across, down))


def _environment(process: asyncssh.SSHServerProcess[bytes], folder: InstanceFolder) -> dict[str, str]:
    """The instance's environment, and what sshd adds to it. Of the client's own, only language settings get in."""
    here, there = process.get_extra_info("sockname"), process.get_extra_info("peername")
    language = {k: v for k, v in process.env.items() if k == "LANG" or k.startswith("LC_")}
    more = {
        "SSH_CLIENT": f"{there[0]} {there[1]} {here[1]}",
        "SSH_CONNECTION": f"{there[0]} {there[1]} {here[0]} {here[1]}",
        **language,
    }
    if process.term_type is not None:
        more["TERM"] = process.term_type
    return folder.environment(**more)


def _exited(child: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """A future of the process's return code. A thread waits, so the child is reaped even after the session is over."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    def wait() -> None:
        status = child.wait()
        try:
            loop.call_soon_threadsafe(lambda: future.done() or future.set_result(status))
        except RuntimeError:  # the loop is closed: the sandbox ended before its process did
            return

    threading.Thread(target=wait, daemon=True, name=f"reap-{child.pid}").start()
    return future


def _finish(process: asyncssh.SSHServerProcess[bytes], status: int) -> None:
    """Send the exit status (a negative one is the signal it died of); nothing if the client has left."""
    try:
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)
    except OSError:
        return
