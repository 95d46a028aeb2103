"""Stop and destroy: which instance exactly, what dies with it, and a plan whose facts the guard can hold against the provider."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bruno.errors import BrunoError, Unreachable
from bruno.fleet.errors import HostKeyChanged, WrongHost
from bruno.fleet.host import Host, connect
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import key_pair
from bruno.fleet.models import Instance, Listing, State
from bruno.guard.actions import DestroyInstance, StopInstance, Target
from bruno.guard.plan import Cost, Fact, Plan, Step, lifetime
from bruno.guard.sanitise import safe_line
from bruno.operator.card import worded
from bruno.records import InstanceRecord, Run
from bruno.runs.evidence import Evidence, Item, gather
from bruno.runs.world import World

_STATUS = {State.PROVISIONING: "loading", State.LOST: "offline", State.FAILED: "exited"}
"""The guard's words for states that have a name of their own here."""
REACH_SECONDS = 15.0


@dataclass(frozen=True)
class _Looked:
    """One instance, looked at before it is ended."""

    instance: Instance
    run: Run | None
    record: InstanceRecord | None
    evidence: Evidence | None
    label_file: str | None
    problem: str
    """Why the machine could not be asked."""

    @property
    def target(self) -> Target:
        return Target(instance_id=self.instance.id, label=self.instance.label or "", ssh_port=self.instance.ssh_port)

    @property
    def kills(self) -> str:
        return _kills(self.evidence, self.run)

    def facts(self, about: str = "") -> tuple[Fact, ...]:
        found = _facts(self.instance, self.record, self.evidence, self.label_file, unreachable=bool(self.problem))
        return tuple(fact.model_copy(update={"about": about}) for fact in found) if about else found


def plan_end(instance: Instance, world: World, *, destroy: bool) -> Plan:
    """The plan that stops (or destroys) this one instance. Looks at the machine first: what runs there, what was saved.

    Raises:
        HostKeyChanged, WrongHost: what answers at the instance's address is another machine; nothing may be done to it.
    """
    seen = _look(instance, world)
    kills, target = seen.kills, seen.target
    action = DestroyInstance(target=target, loses=kills) if destroy else StopInstance(target=target, kills=kills)
    created, expires = lifetime(world.clock(), minutes=5)
    return Plan(
        title=action.describe()[0].upper() + action.describe()[1:],
        run_id=seen.run.run_id if seen.run else None,
        steps=(Step(action=action),),
        facts=seen.facts(),
        notes=_notes(seen, destroy=destroy),
        cost=Cost(per_hour=instance.dph_total, stopped_per_day=0.0 if destroy else instance.stopped_per_day),
        created_at=created,
        expires_at=expires,
    )


def plan_stop_all(run_id: str, instances: Sequence[Instance], world: World) -> Plan:
    """The plan that stops these instances of one run, each looked at first and held against facts of its own.

    Raises:
        HostKeyChanged, WrongHost: as `plan_end`, for any of them: then one has to be stopped by itself.
    """
    with ThreadPoolExecutor(max_workers=len(instances)) as pool:
        seen = list(pool.map(lambda each: _look(each, world), instances))
    created, expires = lifetime(world.clock(), minutes=5)
    prices = [each.instance.dph_total for each in seen]
    disks = [each.instance.stopped_per_day for each in seen]
    notes = [f"{each.instance.id}: {each.kills or 'what runs there is unknown'}" for each in seen]
    notes += [f"{each.instance.id}: the machine could not be asked: {each.problem}" for each in seen if each.problem]
    if None not in disks:
        notes.append(f"stopped instances keep their disks: ${sum(disks):.2f} per day until they are destroyed")  # type: ignore[arg-type]
    return Plan(
        title=f"Stop the {len(seen)} instances of run {run_id}",
        run_id=run_id,
        steps=tuple(Step(action=StopInstance(target=each.target, kills=each.kills)) for each in seen),
        facts=tuple(fact for each in seen for fact in each.facts(str(each.instance.id))),
        notes=tuple(str(safe_line(note, 400)) for note in notes),
        cost=Cost(
            per_hour=None if None in prices else sum(price or 0 for price in prices),
            stopped_per_day=None if None in disks else sum(disk or 0 for disk in disks),
        ),
        created_at=created,
        expires_at=expires,
    )


def _look(instance: Instance, world: World) -> _Looked:
    record = world.records.instance(instance.id)
    run = _run_of(record, world)
    # One that bruno did not rent has, as far as it knows, no key of ours that could still be on its way.
    host, problem = _reach(instance, world, patience=REACH_SECONDS if record else 0)
    try:
        return _Looked(
            instance, run, record, gather(world, run, host) if run else None, _label_file(host), "" if host else problem
        )
    finally:
        if host:
            host.close()


def require_known(listing: Listing) -> None:
    """Raise when the provider's list cannot be trusted: what is stopped must have been seen."""
    if not listing.known:
        raise Unreachable(
            f"the provider's list of instances could not be read ({safe_line(listing.problem)}): nothing can be chosen from it",
            fix="Nothing was done. Try again, or look at the provider's console",
        )


def open_host(instance: Instance, world: World, *, patience: float = REACH_SECONDS) -> Host:
    """A connection to the instance, checked against its pinned host key and its label file."""
    return connect(
        instance,
        key_pair(world.paths.keys),
        HostKeys(world.paths.known_hosts),
        patience=patience,
        clock=world.clock,
        sleep=world.sleep,
    )


def _reach(instance: Instance, world: World, *, patience: float) -> tuple[Host | None, str]:
    if instance.state is not State.RUNNING:
        return None, ""
    try:
        return open_host(instance, world, patience=patience), ""
    except (HostKeyChanged, WrongHost):
        raise  # somebody else's machine answers there: that is no reason to stop it harder
    except BrunoError as error:
        return None, str(error)


def _label_file(host: Host | None) -> str | None:
    return host.identify().strip() if host else None


def _run_of(record: InstanceRecord | None, world: World) -> Run | None:
    return world.records.run(record.run_id) if record and record.run_id else None


def _kills(evidence: Evidence | None, run: Run | None) -> str:
    if evidence is None:
        return (
            "every process on it; bruno did not start this instance and knows nothing of what runs there"
            if not run
            else ""
        )
    return evidence.kills


def _facts(
    instance: Instance,
    record: InstanceRecord | None,
    evidence: Evidence | None,
    label_file: str | None,
    *,
    unreachable: bool,
) -> tuple[Fact, ...]:
    status = _STATUS.get(instance.state, instance.state.value)
    said = ("process_running", "model_saved", "trial", "trials")
    return (
        Fact(name="instance_id", value=instance.id, source="provider", checked=True),
        Fact(name="label", value=instance.label, source="provider", checked=True),
        Fact(name="status", value=status, source="provider", checked=True),
        Fact(name="ssh_port", value=instance.ssh_port, source="connection"),
        Fact(name="provider_ssh_port", value=instance.ssh_port, source="provider", checked=True),
        Fact(name="label_file", value=label_file, source="host"),
        Fact(name="host_unreachable", value=unreachable, source="host"),
        Fact(name="rented_by_bruno", value=record is not None, source="records"),
        *(Fact(name=name, value=evidence.value(name) if evidence else None, source="host") for name in said),
    )


def _notes(seen: _Looked, *, destroy: bool) -> tuple[str, ...]:
    """What dies first, then what was looked at: one line a fact, with every source that says so."""
    notes = [f"ends: {seen.kills or 'what runs there is unknown'}"]
    if destroy:
        notes.append("ends: everything on its disk is deleted; this cannot be undone")
    else:
        notes.append("ends: its GPU may be rented by somebody else meanwhile; then it cannot be started again")
    if seen.problem:
        notes.append(f"seen: the machine could not be asked: {safe_line(seen.problem)}")
    if seen.evidence:
        notes += [f"seen: sources disagree: {line}" for line in seen.evidence.disagreements]
        notes += [f"seen: {line}" for line in _seen(seen.evidence)]
    return tuple(str(safe_line(note)) for note in notes)


def _seen(evidence: Evidence) -> list[str]:
    lines = []
    for name in dict.fromkeys(item.name for item in evidence.items):
        said: dict[str, list[Item]] = {}
        for item in evidence.items:
            if item.name == name:
                said.setdefault(worded(item.value), []).append(item)
        lines.append(
            f"{name.replace('_', ' ')}: {', '.join(f'{value} ({_by(items)})' for value, items in said.items())}"
        )
    return lines


def _by(items: Sequence[Item]) -> str:
    """Who says so, and what it rests on, each once."""
    sources = ", ".join(dict.fromkeys(item.source for item in items))
    return "; ".join([sources, *dict.fromkeys(item.note for item in items if item.note)])
