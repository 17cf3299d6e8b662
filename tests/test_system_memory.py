"""How much memory is free, under the limits of a process and of control groups."""

import sys

import pytest
from processes import run_python

from pipeline import system_memory


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")
@pytest.mark.parametrize(("limit", "column"), [("RLIMIT_AS", 0), ("RLIMIT_DATA", 5)])
def test_free_memory_follows_the_limit_of_the_process(limit, column):
    code = (
        "import resource\nfrom pipeline import system_memory\n"
        f"taken = int(open('/proc/self/statm').read().split()[{column}]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.{limit}, (taken + 2**28, resource.RLIM_INFINITY))\n"
        "print(system_memory.free_memory() / 2**28)"
    )
    done = run_python("-c", code)
    assert 0.8 < float(done.stdout) <= 1, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")
@pytest.mark.parametrize("group", ["/", "/job_7/step_0"], ids=["Docker", "Slurm"])
@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_follows_the_limits_of_control_groups(version, group, tmp_path, monkeypatch):
    """With 900 of 1,000 bytes in use, of which 300 are files that have been read; groups above have no limit."""
    names = [("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")][version - 1]
    top = tmp_path / "memory" if version == 1 else tmp_path
    folder = top / group.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip((*names, "memory.stat"), ("1000\n", "900\n", "anon 600\n"), strict=True):
        (folder / name).write_text(content)
    prefix = "total_" if version == 1 else ""
    cached = f"{prefix}inactive_file 200\n{prefix}active_file 100\n"
    (folder / "memory.stat").write_text("anon 600\n" + cached)
    if folder != top:
        (top / names[0]).write_text("max\n" if version == 2 else f"{2**63}\n")
        (top / names[1]).write_text("5000\n")
        (top / "memory.stat").write_text("")
    (tmp_path / "own").write_text(f"4:cpu:/x\n3:memory:{group}\n" if version == 1 else f"0::{group}\n")
    monkeypatch.setattr(system_memory, "GROUPS", tmp_path)
    monkeypatch.setattr(system_memory, "OWN_GROUPS", tmp_path / "own")
    assert system_memory.free_memory() == 400
