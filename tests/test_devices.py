"""Why a backend uses no GPU, in its own words, and how much memory is free."""

import sys

import keras
import pytest
from processes import run_python

from pipeline.settings import devices


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A machine on which the files of NVIDIA's driver exist, but no driver."""
    monkeypatch.setattr(devices, "NVIDIA_FILES", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.skipif(devices._has_nvidia_gpu(), reason="this machine has a GPU")
def test_the_backends_own_reason_and_the_command_to_install_what_is_missing(gpu):
    backend = keras.backend.backend()
    said, command = devices.why_no_gpu(backend).rsplit(" To install what it needs: ", 1)
    assert said.startswith(f"{backend} says: ") and "\n" not in said
    assert any(word in said.lower() for word in ("cuda", "gpu"))
    assert command.startswith("pip install ") and backend in command


@pytest.mark.parametrize(("value", "hides"), [("", True), ("-1", True), ("1", False), ("11", False)])
def test_a_gpu_that_its_user_hides(value, hides, gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    monkeypatch.setitem(devices.BACKENDS, "tensorflow", devices._Backend("", "tensorflow"))
    assert ("CUDA_VISIBLE_DEVICES" in devices.why_no_gpu("tensorflow")) == hides


def test_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(devices, "NVIDIA_FILES", ())
    monkeypatch.setenv("PATH", "")
    assert devices.why_no_gpu("tensorflow") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")
def test_free_memory_follows_the_limit_of_the_process():
    code = (
        "import resource\nfrom pipeline.settings import devices\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, resource.RLIM_INFINITY))\n"
        "print(devices.free_memory() / 2**28)"
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
    cached = "total_inactive_file 300\n" if version == 1 else "inactive_file 300\n"
    (folder / "memory.stat").write_text("anon 600\n" + cached)
    if folder != top:
        (top / names[0]).write_text("max\n" if version == 2 else f"{2**63}\n")
        (top / names[1]).write_text("5000\n")
        (top / "memory.stat").write_text("")
    (tmp_path / "own").write_text(f"4:cpu:/x\n3:memory:{group}\n" if version == 1 else f"0::{group}\n")
    monkeypatch.setattr(devices, "GROUPS", tmp_path)
    monkeypatch.setattr(devices, "OWN_GROUPS", tmp_path / "own")
    assert devices.free_memory() == 400
