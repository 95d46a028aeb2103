"""The fault menu: everything that is known to go wrong at a provider, to be ordered one by one. Pure.

A fault is data: a kind, how often it strikes, and where. It is kept in the sandbox's state, so it outlives a restart of
the sandbox. `FaultBook.take` is the one place a fault is used up.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class FaultKind(StrEnum):
    """What can go wrong. In brackets: what `value` means, and its default."""

    # A request is answered wrongly. `operation` picks which: search, create, list, show, start, stop, label, ...
    RATE_LIMIT_TEXT = "rate_limit_text"  # 429, text/plain
    RATE_LIMIT_JSON = "rate_limit_json"  # 429, {"detail": ...}
    SEARCH_QUOTA = "search_quota"  # 429, daily search quota used up
    SERVER_ERROR = "server_error"  # an HTML page [status, 502]
    REFUSED = "refused"  # 400 whose message is [text]: whatever words a provider may send
    REPLY_LOST = "reply_lost"  # the work is done, then the connection is closed without an answer
    HANG = "hang"  # the answer comes late [wall-clock seconds, 30]
    # Creating
    NO_SUCH_ASK = "no_such_ask"  # [status 400, 404 or 410; 404]
    NO_CREDIT = "no_credit"  # [error word: insufficient_credit, missing_billing or spend_rate_limit]
    NEVER_MATERIALISES = "never_materialises"  # success and an id, but no instance
    REFUSED_BUT_CREATED = "refused_but_created"  # success false, and a stopped instance that bills its disk
    # Reading the list
    LIST_GONE = "list_gone"  # 410 deprecated_endpoint on the list that works today
    LIST_MISSING_ROW = "list_missing_row"  # one row left out [instance: which, else the first]
    # What an instance shows
    NULL_STATUS = "null_status"  # actual_status null for `times` readings
    PORTS_NULL = "ports_null"  # ports null while running, for `times` readings
    # How an instance comes up. Without `instance`: the next one created
    SLOW_LOADING = "slow_loading"  # [seconds of loading, a day]
    OCI_FAILURE = "oci_failure"  # stays `created` with the runtime's error
    LATE_SSH = "late_ssh"  # running, but SSH does not answer for [seconds, 60]
    KEY_LAG = "key_lag"  # keys work only after [seconds, 60]
    # On start
    GPU_TAKEN = "gpu_taken"  # a start waits for ever
    PORT_CHANGE = "port_change"  # the next start gets another direct port
    # SSH, at once or on the next connections of an instance
    ACCEPT_THEN_CLOSE = "accept_then_close"  # the next `times` connections
    HOST_KEY_CHANGE = "host_key_change"  # at once, for ever
    DROP_SSH = "drop_ssh"  # at once: every open connection is cut
    # Events, at once
    OUTBID = "outbid"
    OFFLINE = "offline"  # [status shown, offline or unknown]
    ONLINE = "online"
    OUT_OF_MEMORY = "out_of_memory"  # the largest process is killed without a word; only `dmesg` knows
    CONTAINER_EXIT = "container_exit"  # the container dies; intended stays running
    CREDIT = "credit"  # the account's credit becomes [dollars, 0]; at or below 0 everything stops
    CLOCK_JUMP = "clock_jump"  # [seconds, an hour; may be negative]
    DISK_FULL = "disk_full"  # `df` says full, no process can write beyond [bytes, 0] into one file, uploads fail
    DISK_FREED = "disk_freed"  # undoes disk_full


AT_ONCE = {
    FaultKind.HOST_KEY_CHANGE,
    FaultKind.DROP_SSH,
    FaultKind.OUTBID,
    FaultKind.OFFLINE,
    FaultKind.ONLINE,
    FaultKind.OUT_OF_MEMORY,
    FaultKind.CONTAINER_EXIT,
    FaultKind.CREDIT,
    FaultKind.CLOCK_JUMP,
    FaultKind.DISK_FULL,
    FaultKind.DISK_FREED,
}
FOR_THE_ACCOUNT = {FaultKind.CREDIT, FaultKind.CLOCK_JUMP}
ON_REQUESTS = {
    FaultKind.RATE_LIMIT_TEXT,
    FaultKind.RATE_LIMIT_JSON,
    FaultKind.SEARCH_QUOTA,
    FaultKind.SERVER_ERROR,
    FaultKind.REFUSED,
    FaultKind.REPLY_LOST,
    FaultKind.HANG,
}


class Fault(BaseModel):
    """One ordered fault.

    Args:
        kind: what goes wrong.
        times: how often it strikes before it is gone; None until it is cleared.
        instance: only for this instance; None for any (or, for how an instance comes up, the next one created).
        operation: only for requests of this operation; None for any.
        value: what the kind takes, see `FaultKind`.
    """

    model_config = ConfigDict(extra="forbid")

    kind: FaultKind
    times: int | None = Field(default=1, ge=1)
    instance: int | None = None
    operation: str | None = None
    value: float | str | None = None

    def number(self, default: float) -> float:
        """`value` as a number. Raises ValueError if it is text that is none."""
        return default if self.value is None else float(self.value)


class FaultBook:
    """The ordered faults, oldest first. Works on the list it is given, which is the one in the state."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults

    def add(self, fault: Fault) -> None:
        """Order a fault."""
        self._faults.append(fault)

    def clear(self) -> None:
        """Take back every fault that has not struck yet."""
        self._faults.clear()

    def take(
        self, kind: FaultKind, *, instance: int | None = None, operation: str | None = None, wherever: bool = False
    ) -> Fault | None:
        """Use up one strike of the first fault that fits, or return None.

        A fault without an instance (operation) fits every one; a fault with one fits only that, or `wherever`.
        """
        for fault in self._faults:
            here = wherever or (fault.instance in {None, instance} and fault.operation in {None, operation})
            if fault.kind is not kind or not here:
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
            return fault
        return None
