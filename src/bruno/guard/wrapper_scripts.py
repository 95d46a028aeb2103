"""Wrappers that hand a text to a shell or to an interpreter: sh -c, eval, ssh, watch, tmux send-keys, su -c, at. Pure."""

from __future__ import annotations

import re

from bruno.guard.script import Simple
from bruno.guard.shapes import Program, Wrapper
from bruno.guard.words import UNKNOWN, Word, names
from bruno.guard.wrapper_parts import Inner, Unwrapped, anywhere, own_part

_DECODERS = names(
    "base64 base32 xxd rev tr openssl gzip gunzip zcat bzip2 xz uudecode od hexdump sed awk perl python python3 basenc"
)
_MODULES = names("pip uv ipython vllm bruno vastai optuna wandb mlflow accelerate ansible virtualenv")
"""Modules that `python -m` runs as the program of the same name."""


def shell(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """sh and its like: a string after -c, a script file, or what comes through standard input."""
    del wrapper, program
    at, string, stdin = 0, False, False
    while at < len(words) and re.match(r"[-+][A-Za-z-]", words[at].text):
        text = words[at].text
        if text in ("--version", "--help"):
            return None
        if text == "--":
            at += 1
            break
        if text in ("--rcfile", "--init-file", "-o", "+o", "-O", "+O"):
            at += 2
            continue
        short = not text.startswith("--") and text[0] == "-"
        string = string or (short and "c" in text)
        stdin = stdin or text == "-s"
        at += 2 if short and text[-1] in "oO" else 1  # bash -ceuo pipefail '...'
    if at < len(words) and words[at].splits:
        return anywhere(words)
    if string:
        if at >= len(words):
            return None
        return Unwrapped([Inner(script=_given(words[at].text, words[at + 1 :]), where=simple.words[0].text)])
    if at < len(words) and words[at].text not in ("-", "/dev/stdin") and not stdin:
        text = words[at].shown()
        piped = text.startswith("/dev/fd/")
        reason = "runs the output of another command as a script" if piped else f"runs the script {text}"
        return Unwrapped(own="typed_yes" if piped else "ask", reason=reason, rule="runs-a-script")
    if simple.stdin is not None:
        return Unwrapped(
            [Inner(script=_given(simple.stdin, words[at:]), where=f"{simple.words[0].text}, from its input")]
        )
    if simple.piped:
        hidden = any(feeder.rsplit("/", 1)[-1] in _DECODERS for feeder in simple.feeders)
        reason = "runs whatever comes through the pipe as a script" + (
            ", decoded on the way, so that it cannot be read" if hidden else ""
        )
        return Unwrapped(own="refuse" if hidden else "typed_yes", reason=reason, rule="pipe-to-shell")
    return Unwrapped(own="ask", reason="opens a shell", rule="opens-a-shell")


def _given(script: str, arguments: list[Word]) -> str:
    """The script with its positional parameters unknown, when it is given any: `sh -c 'find "$@"' _ -delete`."""
    return re.sub(r"\$[@*]|\$\{[@*][^}]*\}", UNKNOWN, script) if arguments else script


def evaluated(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del wrapper, program
    return (
        Unwrapped([Inner(script=" ".join(word.text for word in words), where=simple.words[0].text)]) if words else None
    )


def ssh(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del program
    local = [
        word.text
        for word in words
        if re.search(
            r"(?i)proxycommand|localcommand|knownhostscommand|proxyusefdpass|pkcs11provider|securitykeyprovider|xauthlocation|^include",
            word.text,
        )
    ]
    at = own_part(wrapper, words)
    if at is None or at >= len(words):
        return anywhere(words) if at is None else None
    host, inner = words[at], words[at + 1 :]
    if inner and inner[0].text == "--":
        inner = inner[1:]
    found = Unwrapped()
    if local or not host.known:
        found.own, found.reason = (
            "typed_yes",
            "runs a local command, or reaches a host that is not known before it runs",
        )
        found.inners += [
            Inner(script=re.split(r"[= ]", text, maxsplit=1)[-1], where="this machine", sure=False) for text in local
        ]
    if inner:
        found.inners.append(Inner(script=" ".join(word.text for word in inner), where=f"on {host.shown()}"))
    elif simple.piped:
        heard = Simple(words=[Word("sh")], stdin=simple.stdin, piped=True, feeders=simple.feeders)
        return shell(Wrapper(), Program(), heard, [])
    elif found.own == "allow":
        found.own, found.reason = "ask", f"opens a session on {host.shown()}"
    return found


def joined(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """watch, tmux, parallel and others that hand their arguments, joined, to a shell."""
    del program
    at = own_part(wrapper, words)
    if at is None:
        return anywhere(words)
    inner = words[at + wrapper.skip :]
    texts = [word.text for word in inner]
    if ":::" in texts:
        inner, added = inner[: texts.index(":::")], inner[texts.index(":::") + 1 :]
        one = added[0].text if len(added) == 1 else UNKNOWN
        inner = [Word(word.text.replace("{}", one)) for word in inner] + (
            [] if any("{}" in t for t in texts) else [Word(one)]
        )
    if not inner:
        return None
    # The text may be one quoted string, or words that are joined: both are read.
    return Unwrapped([Inner(script=" ".join(word.text for word in inner), where=simple.words[0].text)])


def keys(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """tmux send-keys, screen -X stuff: text typed into a terminal elsewhere."""
    del program, simple
    at = own_part(wrapper, words)
    texts = words[at or 0 :]
    typed = "".join(
        "\n" if word.text in ("Enter", "C-m", "KPEnter") else word.text + (" " if len(texts) > 2 else "")
        for word in texts
    )
    typed = typed.replace("^M", "\n").replace("\\n", "\n")
    if any(re.fullmatch(r"(?:C-|\^)[cdz\\]", word.text, re.IGNORECASE) for word in texts):
        reason = "interrupts or ends what runs in a terminal; what it had not saved is lost"
        return Unwrapped(own="typed_yes", reason=reason, rule="interrupts")
    return Unwrapped(
        [Inner(script=typed, where="typed into a terminal")], own="ask", reason="types into a running terminal"
    )


def option(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """su -c, script -c, flock -c, tar --to-command=...: a shell string as the value of an option in `values`."""
    del program
    found = Unwrapped()
    for at, word in enumerate(words):
        for option in wrapper.values:
            if word.text == option and at + 1 < len(words):
                found.inners.append(Inner(script=words[at + 1].text, where=simple.words[0].text))
            elif word.text.startswith(option + "=") or (
                len(option) == 2 and word.text.startswith(option) and len(word.text) > 2
            ):
                found.inners.append(Inner(script=word.text[len(option) :].lstrip("="), where=simple.words[0].text))
    return found if found.inners else None


def program(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """perl, node and their like without a file: what comes through standard input is a program that nobody has read."""
    del wrapper, program
    if simple.piped and all(word.text.startswith("-") for word in words):
        return Unwrapped(
            own="typed_yes", reason="runs whatever comes through the pipe as a program", rule="pipe-to-program"
        )
    return None


def later(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """at and batch: a script on standard input, run later."""
    del wrapper, program, words
    if simple.stdin is not None:
        return Unwrapped([Inner(script=simple.stdin, where=f"later, by {simple.words[0].text}")], own="ask")
    own = "typed_yes" if simple.piped else "ask"
    return Unwrapped(own=own, reason="runs whatever it is given later", rule="runs-later")


def sourced(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """source and `.`: a file is no text that can be read here, an input or another command's output may be."""
    del wrapper, program
    if not words or not re.fullmatch(r"/dev/(?:stdin|fd/\d+)|/proc/self/fd/\d+", words[0].text):
        return None
    if simple.stdin is not None:
        return Unwrapped([Inner(script=simple.stdin, where="this shell, from its input")], own="ask")
    return Unwrapped(own="typed_yes", reason="runs the output of another command as a script", rule="runs-a-script")


def module(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """`python -m pip list` is `pip list`; code that comes through standard input is code that nobody has read."""
    del wrapper, program
    for at, word in enumerate(words[:6]):
        if word.text == "-m" and at + 1 < len(words) and words[at + 1].text in _MODULES:
            return Unwrapped([Inner(words=words[at + 1 :], where=simple.words[0].text)])
    rest = [word.text for word in words if not word.text.startswith("-") or word.text == "-"]
    if simple.piped and rest in ([], ["-"]) and not any(word.text in ("-c", "-m", "-V", "--version") for word in words):
        return Unwrapped(
            own="typed_yes", reason="runs whatever comes through the pipe as a program", rule="pipe-to-python"
        )
    return None
