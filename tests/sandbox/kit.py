"""What the sandbox's tests share: the SDK and Fabric as bruno uses them, and waiting for what other processes do."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from fabric import Config, Connection

from bruno.sandbox import SandboxControl, SandboxInfo

IMAGE = "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
READY = 4.5  # seconds from creation to SSH at the default pace
QUIET = {"hide": True, "in_stream": False, "warn": True}
H200 = 20871102
RTX_4090 = 19722561


@dataclass
class Cloud:
    """What a test does to the sandbox and through it."""

    info: SandboxInfo
    control: SandboxControl
    vast: Any
    key: Path
    public_key: str

    def rent(self, offer: int = H200, **more: Any) -> int:
        """Create an instance; its id."""
        options = {"image": IMAGE, "disk": 64, "ssh": True, "direct": True, "label": "job-1", "cancel_unavail": True}
        answer = self.vast.create_instance(offer, **{**options, **more})
        assert answer["success"] is True
        return answer["new_contract"]

    def ready(self, offer: int = H200, **more: Any) -> int:
        """Create an instance and let it come up; its id."""
        instance = self.rent(offer, **more)
        self.control.advance(READY)
        return instance

    def connect(self, instance: int, *, proxy: bool = False, **more: Any) -> Connection:
        """Fabric, as bruno uses it: nothing of the user's SSH setup, no agent."""
        row = self.vast.show_instance(instance)
        port = row["ssh_port"] if proxy else int(row["ports"]["22/tcp"][0]["HostPort"])
        connect_kwargs = {
            "key_filename": str(self.key),
            "allow_agent": False,
            "look_for_keys": False,
            "banner_timeout": 5,
        }
        config = Config(overrides={"load_ssh_configs": False})
        return Connection(
            row["public_ipaddr"].strip(),
            user="root",
            port=port,
            config=config,
            connect_timeout=5,
            connect_kwargs={**connect_kwargs, **more},
        )

    def home(self, instance: int) -> Path:
        """The instance's home folder, seen from outside."""
        return self.info.state / "instances" / str(instance) / "root"


def sdk(info: SandboxInfo, **more: Any) -> Any:
    """The unmodified SDK, aimed at a sandbox."""
    from vastai import VastAI

    client = VastAI(api_key=more.pop("api_key", info.api_key), server_url=info.url, retry=1)
    client.client.timeout = 20
    return client


def make_key(folder: Path, name: str = "id_ed25519") -> tuple[Path, str]:
    """A client key on disk: its path and its public line."""
    import asyncssh

    key, path = asyncssh.generate_private_key("ssh-ed25519"), folder / name
    key.write_private_key(path)
    path.chmod(0o600)
    return path, key.export_public_key().decode().strip()


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie nobody reaps has)."""
    try:
        psutil.Process(pid).wait(timeout=10)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def wait_for(path: Path) -> str:
    """The text of a file another process is about to rename into place."""
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)
    return path.read_text()


def job_lines(script: str) -> str:
    """The launch recipe: detached, under a lock, pid and start time written, the exit code renamed into place."""
    wrapper = (
        "cd $WORKSPACE/job; echo $$ > pid.part; mv pid.part pid; cut -d' ' -f22 /proc/$$/stat > started; "
        f"{script}; echo $? > exit.part; mv exit.part exit"
    )
    return (
        "mkdir -p $WORKSPACE/job && mkdir $WORKSPACE/job/lock && "
        f"setsid -f bash -c {shlex.quote(wrapper)} > $WORKSPACE/job/log 2>&1 < /dev/null"
    )
