# ruff: noqa: E501  (tables read better with long lines)
"""Wrapping or disguising a command never lowers its verdict."""

from __future__ import annotations

import base64
import shlex

import pytest

from bruno.guard.command import check
from bruno.guard.shapes import Level

BASES = [
    "rm -rf /", "rm -rf ~", "rm -rf models", "rm x", "find . -delete", "find / -delete", "git push --force", "git reset --hard", "kill -9 1234",
    "kill -9 -1", "pkill python", "dd if=/dev/zero of=/dev/sda", "dd if=a of=b", "mkfs.ext4 /dev/sda1", "chmod -R 777 /", "chmod 600 x",
    "vastai destroy instance 5", "vastai stop instance 5", "vastai create instance 5", "docker rm -f x", "docker system prune", "kubectl delete pod x",
    "systemctl stop x", "reboot", "truncate -s 0 x", "shred -u x", "mv a b", "mv /etc /tmp", "cp a b", "sed -i d x", "psql -f x.sql",
    "apt-get remove x", "pip uninstall torch", "crontab -r", "userdel me", "iptables -F", "umount /x", "terraform destroy", "aws s3 rb s3://b",
    "rsync -a --delete a b", "git clean -fd", "unknown-program --now", "python train.py", "curl -X DELETE http://x/y", "tmux kill-server",
]  # fmt: skip
HARMLESS = ["ls -la", "cat x", "nvidia-smi", "git status", "df -h"]

WRAPPERS = {
    "sudo": "sudo {}", "sudo-u": "sudo -n -u root {}", "env": "env {}", "env-var": "env A=b {}", "nohup": "nohup {}", "timeout": "timeout -k 1 5 {}",
    "time": "time -p {}", "xargs": "xargs {} < list", "sh-c": "sh -c {q}", "bash-lc": "bash -lc {q}", "nested": "bash -c {qq}", "eval": "eval {q}",
    "ssh": "ssh -p 22 root@host {q}", "ssh-words": "ssh host {}", "exec": "exec {}", "command": "command {}", "coproc": "coproc {}", "nice": "nice -n 5 {}",
    "setsid": "setsid {}", "subshell": "({})", "group": "{{ {}; }}", "substitution": 'echo "$({})"', "backticks": "echo `{}`", "process": "cat <({})",
    "heredoc": "bash <<'EOF'\n{}\nEOF", "here-string": "bash <<< {q}", "piped": "echo {q} | sh", "decoded": "echo {b64} | base64 -d | sh",
    "find": "find . -exec {} \\;", "flock": "flock /tmp/l {}", "watch": "watch {q}", "docker": "docker exec c {}", "kubectl": "kubectl exec p -- {}",
    "tmux": "tmux new -d {q}", "keys": "tmux send-keys -t x {q} Enter", "su": "su -c {q}", "stdbuf": "stdbuf -oL {}", "busybox": "busybox {}",
    "after": "ls; {}", "and": "ls && {}", "or": "ls || {}", "background": "ls & {}", "newline": "ls\n{}", "comment": "# x\n{}", "if": "if true; then {}; fi",
    "loop": "for i in 1 2; do {}; done", "not": "! {}", "assigned": "x=$({})", "trap": "trap {q} EXIT", "python": "python -c {py}", "case": "case x in x) {} ;; esac",
    "redirected": "{} > /dev/null 2>&1 &", "function": "f() {{ {}; }}; f", "while": "while true; do {}; done", "sudo-sh": "sudo sh -c {q}", "doas": "doas {}",
    "alias": "alias ls={q}; ls", "vastai": "vastai execute 5 {q}", "uv": "uv run {}", "env-S": "env -S {q}", "parallel": "parallel {} ::: a",
    "at": "at now <<< {q}", "screen": "screen -dmS x {}", "each-submodule": "git submodule foreach {q}", "bisect": "git bisect run {}", "ansible": "ansible all -a {q}",
    "named-coproc": "coproc X {{ {}; }}", "dot": ". /dev/stdin <<< {q}", "in-a-container": "kubectl exec p -c c -- {}", "options": "bash -ceuo pipefail {q}",
    "mapfile": "mapfile -C {q} -c 1 lines < x", "here-backticks": "cat <<E\n`{}`\nE", "gcloud": "gcloud compute ssh x --command {q}",
    "vastai-words": "python -m vastai execute 5 {q}", "endless": "while true; do {} & done",
}  # fmt: skip


def wrapped(shape: str, command: str) -> str:
    return shape.format(
        command,
        q=shlex.quote(command),
        qq=shlex.quote("bash -c " + shlex.quote(command)),
        b64=base64.b64encode(command.encode()).decode(),
        py=shlex.quote(f"import os; os.system({command!r})"),
    )


def split_first(command: str) -> tuple[str, str]:
    head, _, rest = command.partition(" ")
    return head, rest


OBFUSCATIONS = {
    "single quotes": lambda head, rest: f"'{head}' {rest}",
    "double quotes": lambda head, rest: f'"{head}" {rest}',
    "empty quotes inside": lambda head, rest: f"{head[0]}''{head[1:]} {rest}",
    "backslash": lambda head, rest: f"\\{head} {rest}",
    "backslash inside": lambda head, rest: f"{head[0]}\\{head[1:]} {rest}",
    "ansi-c": lambda head, rest: "$'" + "".join(f"\\x{ord(c):02x}" for c in head) + f"' {rest}",
    "line continuation": lambda head, rest: f"{head[0]}\\\n{head[1:]} {rest}",
    "substituted": lambda head, rest: f"$(echo {head}) {rest}",
    "variable": lambda head, rest: f"X={head}; $X {rest}",
    "two variables": lambda head, rest: f"A={head[0]}; B={head[1:]}; $A$B {rest}",
    "nothing inside": lambda head, rest: f"{head[0]}$@{head[1:]} {rest}",
    "IFS": lambda head, rest: f"{head}${{IFS}}" + rest.replace(" ", "${IFS}"),
    "braces": lambda head, rest: "{" + ",".join([head, *rest.split()]) + "}",
    "blanks": lambda head, rest: f"   {head}\t {rest}",
    "backticks": lambda head, rest: f"`echo {head}` {rest}",
    "path": lambda head, rest: f"/usr/bin/{head} {rest}",
    "strange path": lambda head, rest: f"/proc/self/root/bin/{head} {rest}",
    "dotted path": lambda head, rest: f"/usr/bin/../../bin/{head} {rest}",
    "printf": lambda head, rest: f"$(printf %s {head}) {rest}",
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapping_never_lowers(name: str) -> None:
    for base in BASES:
        line = wrapped(WRAPPERS[name], base)
        assert check(line).level >= check(base).level, line


@pytest.mark.parametrize("name", OBFUSCATIONS)
def test_disguise_never_lowers(name: str) -> None:
    for base in BASES:
        line = OBFUSCATIONS[name](*split_first(base))
        assert check(line).level >= check(base).level, (line, check(line).verdict, check(base).verdict)


@pytest.mark.parametrize("name", OBFUSCATIONS)
def test_disguise_inside_wrappers_never_lowers(name: str) -> None:
    for base in BASES[::4]:
        line = OBFUSCATIONS[name](*split_first(base))
        for shape in ("sudo {}", "bash -c {q}", "ssh host {q}", "timeout 5 {}", "eval {q}", "ls; {}"):
            assert check(wrapped(shape, line)).level >= check(base).level, wrapped(shape, line)


def test_harmless_commands_stay_harmless_in_the_usual_wrappers() -> None:
    for base in HARMLESS:
        for name in (
            "sudo",
            "env",
            "nohup",
            "timeout",
            "time",
            "sh-c",
            "bash-lc",
            "ssh",
            "nice",
            "subshell",
            "and",
            "if",
            "loop",
            "watch",
            "docker",
            "eval",
        ):
            line = wrapped(WRAPPERS[name], base)
            assert check(line).level is Level.allow, (line, check(line).reasons)


READING = [
    "cat {}", "tail -n 50 {}", "tail -f {}", "grep -n refus {}", "sed -n '1,40p' {}", "sed 's/a/b/' {}", "awk '{{print $1}}' {}", "wc -l {}", "stat {}",
    "jq -r .kind {}", "sort -n {}", "cut -d, -f1 {}", "du -sh {}", "diff {} other", "xxd {}", "column -t {}", "tar tf {}", "find . -name {}", "test -f {}",
    "git log -- {}", "git blame {}", "rg refusal {}", "ssh host cat {}", "bash -c 'tail {}'", "timeout 5 tail -f {}", "xargs -a {} ls", "lsof {}", "zcat {}",
]  # fmt: skip
NAMES = [
    "engine.log", "events.jsonl", "report.json", "install.log", "job/log", "exec.log", "system.log", "eval.json", "rm.log", "kill.log", "delete.txt", "e", "w.txt",
    "drop.csv", "stop.log", "out/pipe", "data/pie", "write.log", "getline.txt", "spawn.log", "os.log", "shutdown.txt",
]  # fmt: skip


@pytest.mark.parametrize("shape", READING)
def test_a_file_may_have_any_ordinary_name(shape: str) -> None:
    """Words that are dangerous in a script are file names elsewhere: `sed -n 5p engine.log` once had to be confirmed."""
    for name in NAMES:
        verdict = check(shape.format(name))
        assert verdict.level is Level.allow, (shape.format(name), verdict.reasons)
