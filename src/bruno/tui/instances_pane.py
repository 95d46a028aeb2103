"""The provider's list. Unreadable is shown as unknown, never as an empty table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import DataTable, Static

from bruno.guard.sanitise import safe_line
from bruno.tui import words
from bruno.tui.poller import Snapshot

if TYPE_CHECKING:
    from bruno.operator.views import InstanceView


class InstancesTable(DataTable[Text]):
    """Rows are keyed by instance id: a key pressed on a row means the id that is shown in it, whatever is read meanwhile."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "app.act_on_instance('stop')", "Stop…"),
        Binding("D", "app.act_on_instance('destroy')", "Destroy…"),
        Binding("c", "app.copy_ssh", "Copy SSH"),
    ]


class InstancesPane(Vertical):
    """A table and, above it, what is unknown."""

    def __init__(self) -> None:
        super().__init__(id="instances")
        self.border_title = "instances"
        self._filter = ""
        self._snapshot: Snapshot | None = None
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        yield Static("not read yet", id="instances-note", markup=False)
        yield InstancesTable(cursor_type="row", zebra_stripes=True)

    def on_mount(self) -> None:
        self.table.add_columns(*words.INSTANCE_HEADS)

    @property
    def table(self) -> InstancesTable:
        return self.query_one(InstancesTable)

    @property
    def current(self) -> InstanceView | None:
        """The instance under the cursor."""
        view = self._snapshot.instances if self._snapshot else None
        if view is None or not self.table.row_count:
            return None
        key = self.table.coordinate_to_cell_key(self.table.cursor_coordinate).row_key.value
        return next((row for row in view.rows if str(row.instance_id) == key), None)

    def filter(self, text: str) -> None:
        """Show only rows that contain `text`."""
        self._filter = text.casefold()
        if self._snapshot is not None:
            self.show(self._snapshot)

    def show(self, snapshot: Snapshot) -> None:
        """Draw this snapshot."""
        self._snapshot = snapshot
        view = snapshot.instances
        note = _note(snapshot)
        cells = [(str(row.instance_id), words.instance_row(row)) for row in view.rows] if view else []
        shown = [(key, row) for key, row in cells if self._filter in " ".join(row).casefold()]
        if (note, shown) == self._drawn:
            return
        self._drawn = (note, shown)
        line = self.query_one("#instances-note", Static)
        line.update(note)
        line.display = bool(note)
        self.border_title = f"instances ({len(shown)} of {len(cells)} match)" if self._filter else "instances"
        self._fill(shown)

    def _fill(self, rows: Sequence[tuple[str, Sequence[str]]]) -> None:
        table = self.table
        kept = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value if table.row_count else None
        table.clear(columns=True)  # columns never shrink: a long state that is over would push the rest off the screen
        table.add_columns(*words.INSTANCE_HEADS)
        for key, row in rows:
            table.add_row(*(Text(cell) for cell in row), key=key)  # a plain string would be read as markup
        keys = [key for key, _ in rows]
        if kept in keys:
            table.move_cursor(row=keys.index(kept))


def _note(snapshot: Snapshot) -> str:
    view = snapshot.instances
    if view is None:
        return "not read yet"
    if not view.known:
        return safe_line(f"unknown: the provider's list could not be read. {view.problem}", 500)
    if snapshot.is_stale(view.read_at):
        return f"STALE: read {words.age(view.read_at, snapshot.at)}"
    return "" if view.rows else "no instance is rented"
