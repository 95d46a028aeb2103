"""The step that asks, from the machine itself, whether the study's database answers and lets us in, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bruno.errors import RunFailed
from bruno.fleet.host import Host
from bruno.fleet.jobs import JobPhase
from bruno.runs import playbook as book
from bruno.runs.database import VARIABLE
from bruno.runs.events import Kind
from bruno.runs.job import Places, database_of, how_it_ended, last_words, run_to_its_end
from bruno.runs.reach_database import NOTHING_ANSWERS, REFUSED

if TYPE_CHECKING:
    from bruno.runs.task import Task

_PROGRAM = Path(__file__).with_name("reach_database.py")


def reach(task: Task, step: book.Reach) -> dict[str, Any]:
    """Log in to the database from the machine.

    Raises:
        RunFailed: naming the instance and the host and port that it cannot reach, or who is not let in.
        Denied: `search.storage` names another database now than the one that was confirmed.
    """
    database = database_of(task)
    if database is None:
        return {"skipped": "no database is shared"}

    def send(host: Host) -> Places:
        places = Places.of(host, task.run_id)
        host.write(f"{places.root}/reach_database.py", _PROGRAM.read_bytes())
        return places

    places = task.on_host(send)
    python = task.row("install").detail["python"]
    local = task.home / "reach.log"
    state = run_to_its_end(
        task,
        f"{places.root}/reach",
        [python, f"{places.root}/reach_database.py"],
        env={VARIABLE: database.url},
        local=local,
        minutes=step.minutes,
        doing="asking for the database",
    )
    if state.phase is JobPhase.FINISHED and state.exit_code == 0:
        task.tell(Kind.NOTICE, f"instance {task.instance_id} reaches the study's database at {database.place}")
        return {"database": database.address}
    why = last_words(local)
    if state.exit_code == NOTHING_ANSWERS:
        raise RunFailed(
            f"instance {task.instance_id} cannot reach {database.place}, where the study is kept ({why})",
            fix="Open that port to the instances, then resume",
        )
    if state.exit_code == REFUSED:
        raise RunFailed(
            f"instance {task.instance_id} reaches {database.place}, but {database.address} does not let it in ({why})",
            fix="Check the user, the password and the database of search.storage, then resume",
        )
    raise RunFailed(
        f"whether instance {task.instance_id} reaches {database.place} is unknown ({how_it_ended(state)}): {why}",
        fix=f"See {local}",
    )
