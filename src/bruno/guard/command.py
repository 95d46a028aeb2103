"""The verdict on a raw shell command. Pure: it reads the text, never runs or looks at anything.

`check` parses the line, follows wrappers into what they run, holds each simple command against the guardrail files, and lets
the strictest verdict stand. A line that cannot be analysed asks for a typed yes, and is read a second time with its quotes and
escapes taken away: that reading can only raise the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bruno.guard.command_judge import CommandJudge, Piece
from bruno.guard.command_rules import CommandRules, shipped_commands
from bruno.guard.sanitise import safe_line
from bruno.guard.shapes import Level


@dataclass(frozen=True)
class CommandVerdict:
    """The strictest verdict over all pieces."""

    command: str
    level: Level
    pieces: tuple[Piece, ...]

    @property
    def verdict(self) -> str:
        """allow, ask, typed_yes or refuse."""
        return self.level.name

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules that call for more than allow, strictest first."""
        return tuple(dict.fromkeys(piece.rule for piece in self._worst_first() if piece.level > Level.allow))

    @property
    def reasons(self) -> tuple[str, ...]:
        """What would happen, in words, strictest first."""
        return tuple(dict.fromkeys(piece.reason for piece in self._worst_first() if piece.level > Level.allow))

    def _worst_first(self) -> list[Piece]:
        return sorted(self.pieces, key=lambda piece: -piece.level)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        pieces = [
            {"command": p.command, "where": p.where, "verdict": p.level.name, "rule": p.rule, "reason": p.reason}
            for p in self.pieces
        ]
        return {
            "command": self.command,
            "verdict": self.verdict,
            "rules": self.rules,
            "reasons": self.reasons,
            "pieces": pieces,
        }


def check(command: str, rules: CommandRules | None = None, *, git_remote: str = "") -> CommandVerdict:
    """The verdict on one line (or several) of shell.

    Args:
        command: the text as it would be given to bash.
        rules: the rules in force (the shipped ones when None).
        git_remote: the one remote that `git push` may go to; "" leaves every push to the rules alone.

    Never raises for what the command says.
    """
    judge = CommandJudge(rules or shipped_commands(), git_remote)
    pieces = list(judge.text(command, "", 0))
    if not pieces:
        pieces = [Piece(safe_line(command), "", Level.allow, "", "")]
    if judge.rules.broken:
        pieces.append(
            Piece(
                safe_line(command),
                "",
                Level.typed_yes,
                "guardrails-broken",
                "a guardrail file cannot be used: " + "; ".join(judge.rules.problems[:2]),
            )
        )
    return CommandVerdict(command, max(piece.level for piece in pieces), tuple(pieces))
