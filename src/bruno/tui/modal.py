"""A screen over the others that closes once."""

from __future__ import annotations

from textual.screen import ModalScreen, ScreenResultType


class Modal(ModalScreen[ScreenResultType]):
    """Its first answer stands. Keys that follow before it is gone (Escape twice, a word and another) change nothing.

    Textual's `dismiss` takes the topmost screen away each time it is called, whichever that is by then.
    """

    answered = False

    def close(self, answer: ScreenResultType) -> None:
        """End with this answer, unless there is one."""
        if not self.answered:
            self.answered = True
            self.dismiss(answer)
