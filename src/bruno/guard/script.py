"""What a shell line was read into: simple commands, and doubts about the reading. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field

from bruno.guard.words import Word


@dataclass(slots=True)
class Redirect:
    """`op` is bash's operator (`>`, `>>`, `<`, `<>`, `>&`, ...); `target` None when there is none (`2>&-`)."""

    op: str
    target: Word | None


@dataclass(slots=True)
class Simple:
    """One simple command with what is known of its input.

    `stdin` is the text it reads when that is known; `piped` says that it reads from another command or a file.
    """

    words: list[Word]
    assigns: list[tuple[str, Word]] = field(default_factory=list)
    redirects: list[Redirect] = field(default_factory=list)
    stdin: str | None = None
    piped: bool = False
    source: str = ""
    feeders: tuple[str, ...] = ()
    """Programs earlier in its pipeline."""

    def shown(self) -> str:
        """For people."""
        return self.source or " ".join(word.shown() for word in self.words)


@dataclass(slots=True)
class Script:
    """All simple commands of a line, wherever they stand, and why the line may be misread."""

    commands: list[Simple] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    cut: bool = False
    """The text was not read to its end."""
