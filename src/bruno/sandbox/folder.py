"""The disk of one instance: its home, its workspace, its own virtual environment and the tools an image would bring.

    instances/<id>/root/                home; ~/.vast_containerlabel, ~/onstart.sh, ~/.ssh/authorized_keys
    instances/<id>/root/workspace/      what /workspace is on a rented machine
    instances/<id>/venv/                python3: the sandbox's interpreter; what pip installs on the instance goes here
    instances/<id>/site/                links to the packages the sandbox's interpreter has, except bruno itself
    instances/<id>/bin/                 nvidia-smi, pip, dmesg; first on PATH
    instances/<id>/kernel.log           what dmesg says there: never this machine's own kernel log
    instances/<id>/ssh_host_ed25519_key
    image/                              if it is there: copied into the home folder of every new instance

Touches only that tree. `remove` refuses anything outside it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import sysconfig
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bruno.sandbox.state import Instance

MARKER = "SANDBOX_INSTANCE"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROFILE = """# Login shells read /etc/profile, which sets PATH anew: put the instance's own tools first again.
export PATH={path}
PS1='root@C.{id} (sandbox):\\w# '
"""
_DF = """#!/bin/sh
# The sandbox's full disk: the same numbers df would show with nothing left. Ordered as a fault; removed when it is over.
/bin/df "$@" | /usr/bin/awk 'NR == 1 { print; next }
  { for (i = NF; i > 1; i--) if ($i ~ /%$/) { $i = "100%"; $(i-1) = 0; $(i-2) = $(i-3); break } print }'
"""


@dataclass(frozen=True)
class InstanceFolder:
    """The folder of one instance.

    Args:
        state: the sandbox's state folder, absolute.
        id: the instance's id.
    """

    state: Path
    id: int

    @property
    def base(self) -> Path:
        """Everything of this instance lies under here."""
        return self.state / "instances" / str(self.id)

    @property
    def home(self) -> Path:
        """The home folder of `root` on the instance."""
        return self.base / "root"

    @property
    def image(self) -> Path:
        """`image` in the sandbox's folder: what lies there is in every new instance's home folder, as if its image brought it
        (a model that would have to be downloaded, say)."""
        return self.state / "image"

    @property
    def workspace(self) -> Path:
        """What `/workspace` is on a rented machine; `$WORKSPACE` on the instance."""
        return self.home / "workspace"

    @property
    def bin(self) -> Path:
        """The instance's own tools, first on PATH."""
        return self.base / "bin"

    @property
    def venv(self) -> Path:
        """The virtual environment whose `python3` is the sandbox's interpreter."""
        return self.base / "venv"

    @property
    def host_key(self) -> Path:
        """The private host key, made with the instance and kept until a fault changes it."""
        return self.base / "ssh_host_ed25519_key"

    @property
    def issue(self) -> Path:
        """What sshd sends before anybody is let in (its `Banner /etc/issue.net`), when the file is there."""
        return self.base / "etc" / "issue.net"

    @property
    def motd(self) -> Path:
        """What sshd prints at the begin of a session with a terminal, when the file is there."""
        return self.base / "etc" / "motd"

    @property
    def container_log(self) -> Path:
        """What the container's main process printed: the output of `onstart.sh`."""
        return self.base / "container.log"

    @property
    def kernel_log(self) -> Path:
        """What `dmesg` prints on the instance."""
        return self.base / "kernel.log"

    @property
    def marker(self) -> str:
        """The value of `$SANDBOX_INSTANCE` in every process of this instance, unique on this machine."""
        return f"{self.state}:{self.id}"

    @property
    def path(self) -> str:
        """PATH on the instance."""
        return f"{self.bin}:{self.venv / 'bin'}:{SYSTEM_PATH}"

    def prepare(self, instance: Instance) -> None:
        """Make the folder. What is there already stays as it is, so it is safe after a crash half-way."""
        for folder in (self.workspace, self.bin, self.home / ".ssh"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.home / ".ssh").chmod(0o700)
        (self.home / ".vast_containerlabel").write_text(f"C.{self.id}\n", encoding="utf-8")
        (self.home / "onstart.sh").write_text(f"#!/bin/bash\n{instance.onstart or ''}\n", encoding="utf-8")

    def equip(self, instance: Instance) -> None:
        """Put in what the image brings: Python, its packages and the tools. Done at every container start."""
        profile = _PROFILE.format(path=shlex.quote(self.path), id=self.id)
        (self.home / ".bash_profile").write_text(profile, encoding="utf-8")
        if not any(self.venv.glob("lib/*/site-packages/sandbox.pth")):  # written last
            if self.image.is_dir():
                shutil.copytree(self.image, self.home, symlinks=True, dirs_exist_ok=True)
            self._make_venv()
        self._write_tools(instance)

    def _make_venv(self) -> None:
        """An environment of its own, so that `pip install` on the instance never changes the console's.

        It sees every package the sandbox's interpreter has, as an image that ships torch would, but not bruno: that has
        to be brought there. The links lie outside the environment, so pip never uninstalls through them.
        """
        venv.EnvBuilder(symlinks=True, with_pip=False).create(self.venv)
        sources = [Path(entry) for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}]
        lines = []
        for number, source in enumerate(sources):
            links = self.base / "site" / str(number)
            links.mkdir(parents=True, exist_ok=True)
            for entry in source.iterdir():
                if "bruno" not in entry.name.lower() and not (links / entry.name).is_symlink():
                    (links / entry.name).symlink_to(entry)
            lines.append(f"import site; site.addsitedir({str(links)!r})\n")
        scheme = sysconfig.get_paths("venv", vars={"base": str(self.venv), "platbase": str(self.venv)})
        Path(scheme["purelib"], "sandbox.pth").write_text("".join(lines), encoding="utf-8")

    def _write_tools(self, instance: Instance) -> None:
        python = shlex.quote(str(self.venv / "bin" / "python3"))
        script = Path(__file__).with_name("nvidia_smi.py").read_text(encoding="utf-8")
        (self.bin / ".nvidia_smi.py").write_text(script, encoding="utf-8")
        offer = instance.offer
        facts = {
            "name": f"NVIDIA {offer.gpu_name}",
            "count": offer.num_gpus,
            "memory_total": offer.gpu.gpu_ram,
            "power_limit": offer.gpu.gpu_max_power,
            "compute_cap": f"{offer.gpu.compute_cap / 100:.1f}",
            "marker": f"{MARKER}={self.marker}",
            "id": self.id,
        }
        (self.bin / ".gpu.json").write_text(json.dumps(facts), encoding="utf-8")
        program = shlex.quote(str(self.bin / ".nvidia_smi.py"))
        self._tool("nvidia-smi", f'exec {python} -I -S {program} "$@"')
        self._tool("pip", f'exec {python} -m pip "$@"')
        self.kernel_log.touch()
        self._tool("dmesg", f"exec cat {shlex.quote(str(self.kernel_log))}")

    def _tool(self, name: str, line: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def show_full_disk(self, full: bool) -> None:
        """Put a `df` on the instance's PATH that says the disk is full, or take it away again."""
        if not full:
            (self.bin / "df").unlink(missing_ok=True)
            return
        (self.bin / "df").write_text(_DF, encoding="utf-8")
        (self.bin / "df").chmod(0o755)

    def authorize(self, public_keys: Iterable[str]) -> None:
        """Write `~/.ssh/authorized_keys`, which is what the instance's SSH server goes by."""
        path = self.home / ".ssh" / "authorized_keys"
        text = "".join(f"{line}\n" for line in public_keys)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            path.chmod(0o600)

    def authorized_keys(self) -> str:
        """The text of `~/.ssh/authorized_keys`; empty if the file is not there."""
        try:
            return (self.home / ".ssh" / "authorized_keys").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def environment(self, **more: str) -> dict[str, str]:
        """The whole environment of a process on this instance: nothing of the console's gets in."""
        return {
            "HOME": str(self.home),
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/bash",
            "PATH": self.path,
            "LANG": "C.UTF-8",
            "WORKSPACE": str(self.workspace),
            MARKER: self.marker,
            **more,
        }

    def remove(self) -> None:
        """Delete the folder and all in it. Symbolic links in it are removed, never followed."""
        if self.base.is_symlink() or self.base.resolve().parent != (self.state / "instances").resolve():
            raise OSError(f"{self.base} is not an instance folder of this sandbox")
        if self.base.exists():
            shutil.rmtree(self.base)

    def tail_container_log(self, lines: int) -> str:
        """The last lines of what `onstart.sh` printed."""
        try:
            text = self.container_log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "".join(text.splitlines(keepends=True)[-lines:])


def state_folder(path: Path) -> Path:
    """The absolute form of a sandbox's state folder, made if it is not there, readable by its owner alone."""
    path = Path(os.path.realpath(path))
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path
