"""The sandbox itself: one object that keeps the account, serves the API and runs the instances.

    async with Sandbox(folder, clock=Clock.frozen()) as sandbox:
        vast = VastAI(api_key=sandbox.api_key, server_url=sandbox.url, retry=1)   # used in a thread

After everything that can change an instance (a request, the clock, a fault) the account is advanced and the world of
sockets, folders and processes is made to agree with it. Touches its state folder, ports on 127.0.0.1 and processes that
carry its instances' marker; nothing else. Needs aiohttp and asyncssh, so it is imported only by what serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from bruno import __version__
from bruno.sandbox import machine, offers, processes, state
from bruno.sandbox.admin import Admin
from bruno.sandbox.clock import Clock
from bruno.sandbox.events import strike
from bruno.sandbox.faults import Fault, FaultKind
from bruno.sandbox.folder import InstanceFolder, state_folder
from bruno.sandbox.http import Provider, local_only
from bruno.sandbox.info import SandboxInfo
from bruno.sandbox.ssh import LOOPBACK, InstanceSSH, bind
from bruno.sandbox.state import Instance, Pace, Stage
from bruno.sandbox.world import World

log = logging.getLogger(__name__)
_SAVE_EVERY = 5.0  # wall-clock seconds between saves when only money has changed
_LAST_ANSWERS = 0.5  # wall-clock seconds for requests under way when the sandbox ends
_LONGEST_NAP = 1.0  # wall-clock seconds between two looks at the account while an instance exists


class Sandbox:
    """An emulated provider on loopback.

    Args:
        folder: where state, instances and logs live; made if missing. What is in it is taken up again.
        clock: replaces the saved clock; `Clock.frozen()` for tests.
        pace: replaces the saved pace of stages.
        credit: the account's credit in dollars for a new sandbox; an existing one keeps its own.
        catalogue: the offers file.
        rate_limits: answer 429 to calls that come faster than the provider documents.
        idle_after: wall-clock seconds without a request and without a running instance after which `ended` is set;
            None for never.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock | None = None,
        pace: Pace | None = None,
        credit: float | None = None,
        catalogue: Path = offers.DEFAULT_CATALOGUE,
        rate_limits: bool = False,
        idle_after: float | None = None,
    ) -> None:
        self.folder = state_folder(folder)
        self.rate_limits = rate_limits
        self.ended = asyncio.Event()
        self.acts: list[dict[str, Any]] = []
        """Every request of this process's time that may change something, refused ones too: the provider's own testimony."""
        self.lock = asyncio.Lock()
        self._file = self.folder / "state.json"
        saved = state.load(self._file)
        self.state = saved or state.State()
        if clock is not None:
            self.state.clock = clock
        if pace is not None:
            self.state.pace = pace
        if saved is None and credit is not None:
            self.state.credit = credit
        self.world = World(self.state, offers.load_catalogue(catalogue))
        self._ssh: dict[int, InstanceSSH] = {}
        self._idle_after = idle_after
        self._last_request = self._last_save = time.monotonic()
        self._wake = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base URL for `VastAI(server_url=)`."""
        return f"http://{LOOPBACK}:{self.state.http_port}"

    @property
    def api_key(self) -> str:
        """The key the provider's API takes."""
        return self.state.api_key

    @property
    def info(self) -> SandboxInfo:
        """What another process needs to use this sandbox."""
        return SandboxInfo(
            url=self.url,
            api_key=self.api_key,
            admin_token=self.state.admin_token,
            pid=os.getpid(),
            state=self.folder,
            version=__version__,
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Take up what the folder holds and serve. The instances' processes, if they still run, are theirs again."""
        await self._sweep()
        app = web.Application(middlewares=[local_only], client_max_size=2**20)
        Provider(self).mount(app)
        Admin(self).mount(app)
        self._runner = runner = web.AppRunner(app, access_log=None, shutdown_timeout=_LAST_ANSWERS)
        await runner.setup()
        sock = bind(self.state.http_port or None)
        self.state.http_port = sock.getsockname()[1]
        await web.SockSite(runner, sock).start()
        await self.tick()
        self._save()
        self._loop_task = asyncio.create_task(self._keep_time())
        self._loop_task.add_done_callback(self._time_stopped)

    async def close(self) -> None:
        """Stop serving. The instances' processes go on; the next sandbox on this folder finds them."""
        if self._loop_task is not None:
            self._loop_task.cancel()
        for ssh in self._ssh.values():
            ssh.close()
        self._ssh.clear()
        if self._runner is not None:
            await self._runner.cleanup()
        if self.folder.exists():
            self._save()

    async def _sweep(self) -> None:
        """After a crash: end processes of instances that are down, and clear away what was being destroyed."""
        known = self.state.instances
        for entry in sorted((self.folder / "instances").glob("*")):
            if entry.name.isdigit() and int(entry.name) not in known:
                await self._clear_away(int(entry.name))
        for instance in known.values():
            if instance.stage not in machine.CONTAINER_UP | {Stage.LOST}:
                await self._kill(instance.id)

    def folder_of(self, instance_id: int) -> InstanceFolder:
        """The folder of an instance."""
        return InstanceFolder(self.folder, instance_id)

    def touch(self) -> None:
        """Somebody asked for something: the sandbox is in use."""
        self._last_request = time.monotonic()

    def request_end(self, why: str) -> None:
        """Set `ended`; whoever serves closes the sandbox then."""
        log.info("ending: %s", why)
        self.ended.set()

    async def advance(self, seconds: float) -> float:
        """Move the clock and let everything that falls due happen. Returns the new sandbox time."""
        self.state.clock.advance(seconds)
        await self.tick()
        self._wake.set()
        return self.world.now()

    async def tick(self) -> None:
        """Bring account, sockets, folders and processes up to the present."""
        async with self.lock:
            await self.tick_locked()

    async def tick_locked(self) -> None:
        """`tick` for one who holds the lock."""
        self.world.advance()
        await self.settle_locked(changed=False)

    async def settle_locked(self, *, changed: bool) -> None:
        """Make the outside agree with the account; save if something changed or the last save is old."""
        moves, destroyed = self.world.drain()
        for instance_id in destroyed:
            await self._clear_away(instance_id)
        for instance_id, stage in moves:
            log.info("instance %s: %s", instance_id, stage.value)
            instance = self.state.instances.get(instance_id)
            if instance is None:
                continue
            if stage in {Stage.HALTED, Stage.REBOOTING, Stage.DIED}:
                self._silence(instance_id)
                await self._kill(instance_id)
            elif stage is Stage.BOOTING and instance.stage in machine.CONTAINER_UP:
                await self._boot(instance)
        for instance in self.state.instances.values():
            await self._agree(instance)
        if changed or moves or destroyed or time.monotonic() - self._last_save > _SAVE_EVERY:
            self._save()
        if changed:
            self._wake.set()

    async def _boot(self, instance: Instance) -> None:
        folder = self.folder_of(instance.id)
        await asyncio.to_thread(folder.prepare, instance)
        await asyncio.to_thread(folder.equip, instance)
        if instance.onstart and not instance.foreign:
            plain = {name: value for name, value in instance.extra_env if name.isidentifier()}
            processes.start_onstart(folder, plain)

    async def _agree(self, instance: Instance) -> None:
        """Folder, keys and doors of one instance as its stage has them."""
        folder = self.folder_of(instance.id)
        ssh = self._ssh.get(instance.id)
        if ssh is None:
            await asyncio.to_thread(folder.prepare, instance)
            ssh = self._ssh[instance.id] = self._new_ssh(instance)
            instance.proxy_port = ssh.open_proxy(instance.proxy_port)
        folder.authorize(k.public_key for k in instance.keys if k.effective_at <= self.world.now())
        up = instance.stage in machine.HAS_PORTS and instance.actual == "running"
        if up and instance.direct:
            instance.direct_port = ssh.open_direct(instance.direct_port)
        if up and instance.stage is not Stage.BOOTING:
            ssh.answer()
        elif not up:
            ssh.fall_silent()

    def _new_ssh(self, instance: Instance) -> InstanceSSH:
        def admit() -> bool:
            self.touch()
            return self.world.faults.take(FaultKind.ACCEPT_THEN_CLOSE, instance=instance.id) is None

        return InstanceSSH(self.folder_of(instance.id), admit=admit, file_size_limit=lambda: instance.file_size_limit)

    def ssh_of(self, instance_id: int) -> InstanceSSH | None:
        """The SSH server of an instance, None if there is none."""
        return self._ssh.get(instance_id)

    def _silence(self, instance_id: int) -> None:
        if ssh := self._ssh.get(instance_id):
            ssh.fall_silent()

    async def _clear_away(self, instance_id: int) -> None:
        if ssh := self._ssh.pop(instance_id, None):
            ssh.close()
        await self._kill(instance_id)
        await asyncio.to_thread(self.folder_of(instance_id).remove)

    async def _kill(self, instance_id: int) -> None:
        try:
            ended = await asyncio.to_thread(processes.kill, self.folder_of(instance_id))
        except RuntimeError as error:
            log.error("instance %s: %s", instance_id, error)
            return
        if ended:
            log.info("instance %s: ended %d processes", instance_id, ended)

    async def kill_everything(self) -> None:
        """Stop every instance now, with all its processes, as when the account is out of credit."""
        async with self.lock:
            for instance in self.state.instances.values():
                machine.force_stop(instance, self.world.now())
                self._silence(instance.id)
                await self._kill(instance.id)
            await self.settle_locked(changed=True)

    async def order(self, fault: Fault) -> None:
        """Order a fault: it strikes now, or waits for what it is meant for. Raises `Refusal` for a senseless one."""
        async with self.lock:
            await self.tick_locked()
            try:
                await strike(self, fault)
                self.world.advance()
            finally:
                await self.settle_locked(changed=True)

    async def seed(self, offer: int, *, label: str | None, disk: float = 64.0, running: bool = True) -> int:
        """Put an instance there that no create call made. Returns its id. Raises `Refusal` for an unknown offer."""
        async with self.lock:
            await self.tick_locked()
            instance = self.world.seed(offer, label=label, disk=disk, running=running)
            await self.settle_locked(changed=True)
            return instance.id

    async def overview(self) -> dict[str, Any]:
        """What goes on: credit, clock, and each instance with its stage, folder, connections and process ids."""
        await self.tick()
        told = []
        for instance in list(self.state.instances.values()):
            running = await asyncio.to_thread(processes.find, self.folder_of(instance.id))
            ssh = self._ssh.get(instance.id)
            told.append(
                {
                    **instance.model_dump(mode="json", include={"id", "label", "stage", "generation", "foreign"}),
                    "home": str(self.folder_of(instance.id).home),
                    "connections": ssh.connections if ssh else 0,
                    "processes": sorted(p.pid for p in running),
                }
            )
        return {"credit": self.state.credit, "now": self.world.now(), "instances": told}

    async def _keep_time(self) -> None:
        """Wake when something falls due, and end when idle or when the folder has been deleted."""
        while not self.ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._nap())
            self._wake.clear()
            if not self.folder.exists():
                await self._mourn()
                return
            await self.tick()
            if self._idle():
                self.request_end("nothing to do")

    def _time_stopped(self, task: asyncio.Task[None]) -> None:
        """A sandbox whose time stands still by mistake would bill and stop nothing: better none at all."""
        if not task.cancelled() and (error := task.exception()):
            log.error("the clock task failed", exc_info=error)
            self.request_end("the clock task failed")

    def _nap(self) -> float:
        event, clock = self.world.next_event(), self.state.clock
        wait = None if event is None else clock.wall_seconds(max(event - self.world.now(), 0.0))
        return min(max(wait if wait is not None else _LONGEST_NAP, 0.01), _LONGEST_NAP)

    def _idle(self) -> bool:
        if self._idle_after is None or time.monotonic() - self._last_request < self._idle_after:
            return False
        return all(i.stage in {Stage.EXITED, Stage.BROKEN} for i in self.state.instances.values())

    async def _mourn(self) -> None:
        """The state folder is gone: nobody can find these instances again, so they end with it."""
        for instance_id in list(self.state.instances):
            self._silence(instance_id)
            await self._kill(instance_id)
        self.request_end("the state folder was deleted")

    def _save(self) -> None:
        state.save(self.state, self._file)
        self._last_save = time.monotonic()
