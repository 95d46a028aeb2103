"""What can be said with `:` and found in the palette: one table, each entry an intent or an action of the console."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bruno.intents import Intent


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: typed after `:`, shown in the palette. about: one line for help.
        intent: `kind` of the intent it submits, "" for an action of the console.
        argument: the intent's field that the rest of the line fills, "" for none.
        action: action of the console. acts: hidden under --readonly.
    """

    name: str
    about: str
    intent: str = ""
    argument: str = ""
    action: str = ""
    acts: bool = False


COMMANDS = (
    Command("progress", "trials, raw refusals, KL, time and money of a run", "show_progress", "target"),
    Command("runs", "every run there is a record of", "show_runs"),
    Command("instances", "the provider's list, read now", "show_instances"),
    Command("offers", "what can be rented now, with the price of the disk", "show_offers", "gpu"),
    Command("costs", "what was spent and what is being spent", "show_costs"),
    Command("watch", "follow a run", "watch_run", "target", acts=True),
    Command("resume", "take up a run where its records leave it", "resume_run", "target", acts=True),
    Command("fetch", "copy a run's saved model home", "fetch_model", "target", acts=True),
    Command("chat", "talk to a local model (the console comes back after it)", "chat_with", "model"),
    Command("start", "start a run of this model; shows the plan first", "start_run", "model", acts=True),
    Command("stop", "stop one instance; shows which, then asks", "stop_instance", "target", acts=True),
    Command(
        "destroy",
        "delete one instance and its disk; cannot be undone, then asks",
        "destroy_instance",
        "target",
        acts=True,
    ),
    Command("concern", "say what you see and the data does not: every source is asked", "report_trouble", "words"),
    Command("concerns", "what you reported and is not resolved, what is on hold", "show_concerns"),
    Command("resolved", "say what it was; lifts the hold", "resolve_concern", "words", acts=True),
    Command("STOP", "cancel what can be cancelled, start nothing new, say what is left", "stop_everything"),
    Command("refresh", "read everything again now", action="refresh_now"),
    Command("clear", "empty the conversation", action="clear_talk"),
    Command("help", "keys, commands and what can be said", action="help"),
    Command("quit", "leave at once; nothing is stopped by it", action="quit"),
)


def available(*, readonly: bool) -> tuple[Command, ...]:
    """The commands that may be used."""
    return tuple(command for command in COMMANDS if not (readonly and command.acts))


def find(line: str, *, readonly: bool) -> tuple[Command | None, str]:
    """The command of a `:` line and the rest of the line; None and the nearest names when there is none."""
    name, _, rest = line.removeprefix(":").strip().partition(" ")
    commands = {command.name: command for command in available(readonly=readonly)}
    if name in commands:
        return commands[name], rest.strip()
    if name in {command.name for command in COMMANDS}:
        return None, f":{name} acts, and this console is read-only"
    close = difflib.get_close_matches(name, commands, n=2, cutoff=0.5)
    hint = f"Did you mean :{' or :'.join(close)}?" if close else "F1 lists them"
    return None, f"no command :{name}. {hint}"


def intent_of(command: Command, rest: str) -> Intent:
    """The intent of a command with its argument.

    Raises:
        InputError: the argument is missing or cannot be used.
    """
    from pydantic import ValidationError

    from bruno.errors import InputError
    from bruno.intents import intent_adapter

    values = {"kind": command.intent} | ({command.argument: rest} if command.argument and rest else {})
    try:
        return intent_adapter.validate_python(values)
    except ValidationError as error:
        raise InputError(
            f":{command.name} needs {command.argument or 'nothing'}: {error.errors()[0]['msg']}"
        ) from error
