"""nvidia-smi as a sandbox instance has it: EMULATED. There is no GPU.

Runs alone (standard library only) on the instance. Name, memory size and power limit are the rented offer's. "Used
memory" is the resident memory of the instance's Python processes, "utilisation" their share of this machine's
processors since they started: measured, but on the processor. Knows the queries people script against.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

FACTS = json.loads(Path(__file__).with_name(".gpu.json").read_text())
UNITS = {
    "memory.total": " MiB",
    "memory.used": " MiB",
    "memory.free": " MiB",
    "used_memory": " MiB",
    "used_gpu_memory": " MiB",
    "utilization.gpu": " %",
    "utilization.memory": " %",
    "power.draw": " W",
    "power.limit": " W",
}


def say(line: str) -> None:
    """One line on standard output."""
    sys.stdout.write(f"{line}\n")


def processes() -> list[dict[str, float]]:
    """The Python processes of this instance: pid, resident MiB, processor seconds per second of life."""
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if FACTS["marker"].encode() not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            name, _, rest = (entry / "stat").read_text().partition(" (")[2].rpartition(") ")
        except OSError:
            continue  # gone meanwhile, or another user's
        fields = rest.split()
        if not name.startswith("python"):
            continue
        age = max(uptime - int(fields[19]) / ticks, 0.01)
        busy = (int(fields[11]) + int(fields[12])) / ticks / age
        found.append({"pid": int(entry.name), "memory": int(fields[21]) * page // 2**20, "busy": busy})
    return found


def gpu_values(index: int, running: list[dict[str, float]]) -> dict[str, object]:
    """Every queryable value of one GPU. All work is on the first one."""
    mine = running if index == 0 else []
    used = min(int(sum(p["memory"] for p in mine)) + 4, FACTS["memory_total"])
    busy = min(100, round(100 * sum(p["busy"] for p in mine) / (os.cpu_count() or 1)))
    watts = FACTS["power_limit"] * (0.12 + 0.88 * busy / 100)
    return {
        "index": index,
        "count": FACTS["count"],
        "name": FACTS["name"],
        "gpu_name": FACTS["name"],
        "uuid": f"GPU-emulated-{FACTS['id']}-{index}",
        "gpu_uuid": f"GPU-emulated-{FACTS['id']}-{index}",
        "serial": "emulated",
        "driver_version": "570.148.08",
        "compute_cap": FACTS["compute_cap"],
        "pstate": "P0" if busy else "P8",
        "timestamp": time.strftime("%Y/%m/%d %H:%M:%S.000"),
        "memory.total": FACTS["memory_total"],
        "memory.used": used,
        "memory.free": FACTS["memory_total"] - used,
        "utilization.gpu": busy,
        "utilization.memory": round(100 * used / FACTS["memory_total"]),
        "temperature.gpu": 31 + busy * 4 // 10,
        "power.draw": f"{watts:.2f}",
        "power.limit": f"{FACTS['power_limit']:.2f}",
    }


def table(query: str, rows: list[dict[str, object]], options: list[str]) -> int:
    """Print the queried columns as CSV, or say which one does not exist."""
    fields = query.split(",")
    known = set(gpu_values(0, [])) | {"pid", "process_name", "used_memory", "used_gpu_memory"}
    for field in fields:
        if field not in known:
            say(f'Field "{field}" is not a valid field to query.')
            return 2
    units = {} if "nounits" in options else UNITS
    if "noheader" not in options:
        say(", ".join(field + (f" [{UNITS[field].strip()}]" if field in UNITS else "") for field in fields))
    for row in rows:
        say(", ".join(f"{row[field]}{units.get(field, '')}" for field in fields))
    return 0


def main(arguments: list[str]) -> int:
    """Answer one invocation; the exit status is the real tool's for the same mistake."""
    given: dict[str, str] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        given[name] = value
    running = processes()
    gpus = [gpu_values(index, running) for index in range(FACTS["count"])]
    chosen = next((arguments[i + 1] for i, a in enumerate(arguments[:-1]) if a == "-i"), given.get("--id"))
    if chosen is not None:
        gpus = [gpu for gpu in gpus if str(gpu["index"]) == chosen]
    options = given.get("--format", "").split(",")
    if "--query-gpu" in given:
        return table(given["--query-gpu"], gpus, options)
    if "--query-compute-apps" in given:
        memory = ("used_memory", "used_gpu_memory")
        apps = [
            {**gpus[0], "pid": p["pid"], "process_name": "python3", **dict.fromkeys(memory, p["memory"])}
            for p in running
        ]
        return table(given["--query-compute-apps"], apps, options)
    for gpu in gpus:
        if "-L" in arguments:
            say(f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})")
        else:
            used = f"{gpu['memory.used']}MiB / {gpu['memory.total']}MiB"
            say(
                f"EMULATED by the bruno sandbox | GPU {gpu['index']} {gpu['name']} | {used} | {gpu['utilization.gpu']}%"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
