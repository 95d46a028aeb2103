"""The top line: which console this is, the credit, what is being spent, how old the data is."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from bruno.guard.sanitise import safe_line
from bruno.tui import words
from bruno.tui.poller import Snapshot


class StatusBar(Static):
    """Drawn from a snapshot alone; says `unknown` and STALE in words."""

    def __init__(self, *, sandbox: bool, readonly: bool) -> None:
        super().__init__(markup=False)
        self._badges = [("SANDBOX", "$text-success")] if sandbox else [("REAL MONEY", "$text-warning")]
        if readonly:
            self._badges.append(("READ-ONLY", "$text-accent"))

    def on_mount(self) -> None:
        self._draw("opening…")

    def show(self, snapshot: Snapshot) -> None:
        """Draw this snapshot."""
        view = snapshot.instances
        credit = words.money(view.credit if view else None)
        read = words.age(view.read_at if view else None, snapshot.at)
        stale = snapshot.is_stale(view.read_at if view else None)
        problem = snapshot.problem or (view.problem if view and not view.known else "")
        spending = words.spending(view)
        costs = spending != words.money(0, "/h")  # unknown too: it may
        paying = f"paying {spending}" if costs else "paying nothing"
        self._draw(f"credit {credit}  read {read}", paying=paying, costs=costs, stale=stale, problem=problem)

    def _draw(
        self, text: str, *, paying: str = "", costs: bool = False, stale: bool = False, problem: str = ""
    ) -> None:
        pieces: list[Content | tuple[str, str]] = [(" bruno ", "bold")]
        for badge, colour in self._badges:
            pieces += [(f"[{badge}]", f"bold {colour}"), (" ", "")]
        if paying:
            pieces.append((f" {paying} ", "bold reverse $text-warning" if costs else ""))
        pieces.append((f" {text}", ""))
        if stale:
            pieces.append(("  STALE", "bold $text-warning"))
        if problem:
            pieces.append((f"  ! {safe_line(problem, 300)}", "$text-error"))
        self.update(Content.assemble(*pieces))
