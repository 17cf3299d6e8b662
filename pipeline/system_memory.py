"""How much memory this process has and can still take: of the machine, the container, and its own limits."""

import os
import re
from pathlib import Path

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def used_memory() -> int:
    """Bytes of memory that this process has, without files that are mapped into it, on Linux."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> int | None:
    """Bytes that this process can still take, None where that is unknown: of the machine, the container, the limit."""
    try:
        import resource

        machine = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
        limits = [int(machine) * 1024]
        # Pages that are reserved, and those of data: a file that is mapped into memory counts among the first alone.
        for limit, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                pages = int(Path("/proc/self/statm").read_text().split()[column])
                limits.append(most - pages * os.sysconf("SC_PAGE_SIZE"))
    except (ImportError, OSError, IndexError, ValueError):
        return None
    return max(0, min([*limits, *_free_in_groups()]))


def _free_in_groups():
    """Bytes that are free in the control groups of this process, with which Docker and Slurm limit memory."""
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text(errors="replace").splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if not controllers:  # version 2
            top, names = GROUPS, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            top, names = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            try:
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                details = (folder / "memory.stat").read_text() if (folder / "memory.stat").exists() else ""
                cached = map(int, re.findall(rf"^{names[2]}(?:in)?active_file (\d+)$", details, re.MULTILINE))
                yield limit - used + sum(cached)  # files that have been read can be forgotten
            except (OSError, ValueError):  # no such folder, or "max"
                pass
            if folder == top:
                break
