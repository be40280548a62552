"""The most memory that a process has held; a module of its own, since it is measured where little else is imported."""

from pathlib import Path


def peak() -> int:
    """Of this process, in kB, as Linux has it.  (``ru_maxrss`` begins at the parent's.)"""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
