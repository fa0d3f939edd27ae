"""How much memory this machine has, how much of it is free, and what this process uses; in bytes."""

import contextlib
import os
import re
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def total_bytes() -> int | None:
    """Return the memory that this process may use: a container's limit if that is lower; None if nothing says so."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(total, _read_number(CGROUP / "memory.max") or total)
    return None


def free_bytes() -> int | None:
    """Return the memory that is available now, within a container's limit; None if the system does not say."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if match is None:
        return None
    free, limit = int(match[1]) * 1024, _read_number(CGROUP / "memory.max")
    return free if limit is None else min(free, max(limit - _used_in_container(), 0))


def _used_in_container() -> int:
    """Return what a container cannot give back; files that it has read stay in memory only as long as there is room."""
    cached = re.search(r"^inactive_file (\d+)$", _read(str(CGROUP / "memory.stat")), re.MULTILINE)
    return (_read_number(CGROUP / "memory.current") or 0) - (int(cached[1]) if cached else 0)


def used_bytes() -> int:
    """Return the memory of this process; 0 if the system does not say."""
    match = re.search(r"^VmRSS:\s+(\d+) kB", _read("/proc/self/status"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _read_number(path: Path) -> int | None:
    """Return the number in a file; None if there is none, as for `max`."""
    text = _read(str(path)).strip()
    return int(text) if text.isdigit() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
