"""A terminal that answers every question a text can ask it, and a corpus of texts that ask."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

ANSWERS: list[tuple[re.Pattern[bytes], bytes]] = [
    (re.compile(rb"\x05"), b"yes\r"),  # ENQ: the answer back that a person once set
    (re.compile(rb"\x1b\[5n|\x9b5n"), b"\x1b[0n"),  # DSR
    (re.compile(rb"\x1b\[\??6n|\x9b6n"), b"\x1b[3;5R"),  # cursor position
    (re.compile(rb"\x1b\[[>=]?0?c|\x1bZ|\x9bc"), b"\x1b[?62;1;4c"),  # DA1 to DA3
    (re.compile(rb"\x1b\[2[01]t"), b"\x1b]lyes\r\x1b\\"),  # title report: a title is whatever a text made it
    (re.compile(rb"\x1b\[1[1348]t"), b"\x1b[8;24;80t"),
    (re.compile(rb"\x1bP\$q[^\x1b]*\x1b\\"), b"\x1bP1$r0m\x1b\\"),  # DECRQSS
    (re.compile(rb"\x1b\]1[0-9];\?(?:\x07|\x1b\\)"), b"\x1b]11;rgb:0000/0000/0000\x1b\\"),  # colours
    (re.compile(rb"\x1b\]4;\d+;\?(?:\x07|\x1b\\)"), b"\x1b]4;1;rgb:0000/0000/0000\x1b\\"),
    (re.compile(rb"\x1b\]52;[a-z]*;\?(?:\x07|\x1b\\)"), b"\x1b]52;c;eWVzDQ==\x1b\\"),  # clipboard
    (re.compile(rb"\x1b\[\?\d+\$p"), b"\x1b[?2026;2$y"),  # DECRQM
]
"""Question -> what a terminal types back."""

QUESTIONS = [
    *(
        "\x05",
        "\x1b[5n",
        "\x1b[6n",
        "\x1b[?6n",
        "\x1b[c",
        "\x1b[>c",
        "\x1b[=c",
        "\x1bZ",
        "\x1b[21t",
        "\x1b[18t",
        "\x1bP$qm\x1b\\",
    ),
    *(
        "\x1b]11;?\x07",
        "\x1b]4;1;?\x07",
        "\x1b]52;c;?\x07",
        "\x1b[?2026$p",
        "\x9b6n",
        "\x9bc",
        "\x1b]0;yes\x07\x1b[21t",
    ),
    *(
        "\x1b]52;c;eWVzDQ==\x07",
        "\x1b]8;;http://x\x1b\\yes\x1b]8;;\x1b\\",
        "\x1b[?1049l\x1b[2J",
        "\x1bc",
        "\x1b[?1000h",
    ),
    *(
        "\x1b[?2004l",
        "\x1b[200~yes\r\x1b[201~",
        "\x90$qm\x9c",
        "\x9d11;?\x9c",
        "[@click=app.quit]yes[/]",
        "[bold red]x[/][/]",
    ),
    *(
        "\r\n\x1b[A\x1b[2Kok",
        "\x07\x08\x7f",
        "\u202eyes\u2066",
        "\x1b\x1b[6n[6n",
        "\x1b]0;never closed",
        "\x1bP never closed",
    ),
    *("\x1b[", "\x1b"),
]


def corpus(count: int) -> list[str]:
    """The questions, and `count` texts that hypothesis makes of their pieces. The same every time."""
    pieces = st.one_of(
        st.sampled_from(QUESTIONS),
        st.sampled_from(
            [
                "\x1b",
                "[",
                "]",
                "P",
                "6n",
                "c",
                "\x9b",
                "\x90",
                "\x9c",
                "\x07",
                "\\",
                "\x1b\\",
                ";",
                "?",
                "0",
                "yes\r",
                "\n",
            ]
        ),
        st.characters(codec="utf-8"),
    )
    made: list[str] = []

    @seed(7)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.lists(pieces, min_size=1, max_size=12).map("".join))
    def make(text: str) -> None:
        made.append(text)

    make()
    return [*QUESTIONS, *made]


def answers(output: bytes) -> bytes:
    """What a terminal types back to this output."""
    found = [(match.start(), reply) for pattern, reply in ANSWERS for match in pattern.finditer(output)]
    return b"".join(reply for _, reply in sorted(found))


class AnsweringTerminal:
    """The far end of a pseudo-terminal: keeps every byte, and answers every question in it as it comes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.seen = b""
        self.replied = b""

    def until(self, done: Callable[[bytes], bool], seconds: float = 60) -> bytes:
        """Read until `done` holds for all that was seen. AssertionError when it never does."""
        deadline = time.monotonic() + seconds
        while not done(self.seen):
            assert time.monotonic() < deadline, f"never came; last seen: {self.seen[-2000:]!r}"
            if not self.read(0.1):
                break
        return self.seen

    def read(self, wait: float) -> bool:
        """One piece of output; False at its end."""
        ready, _, _ = select.select([self.descriptor], [], [], wait)
        if not ready:
            return True
        try:
            piece = os.read(self.descriptor, 65536)
        except OSError:
            return False
        self.seen += piece
        reply = answers(piece)
        if reply:
            self.replied += reply
            os.write(self.descriptor, reply)
        return bool(piece)

    def settle(self, seconds: float) -> None:
        """Read on for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.read(0.1)

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())
