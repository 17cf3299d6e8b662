"""Why a backend uses no GPU, in its own words."""

import keras
import pytest

from pipeline.settings import nvidia


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A machine on which the files of NVIDIA's driver exist, but no driver."""
    monkeypatch.setattr(nvidia, "NVIDIA_FILES", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.skipif(nvidia._has_nvidia_gpu(), reason="this machine has a GPU")
def test_the_backends_own_reason_and_the_command_to_install_what_is_missing(gpu):
    backend = keras.backend.backend()
    said, command = nvidia.why_no_gpu(backend).rsplit(" To install what it needs: ", 1)
    assert said.startswith(f"{backend} says: ") and "\n" not in said
    assert any(word in said.lower() for word in ("cuda", "gpu"))
    assert command.startswith("pip install ") and backend in command


@pytest.mark.parametrize(("value", "hides"), [("", True), ("-1", True), ("1", False), ("11", False)])
def test_a_gpu_that_its_user_hides(value, hides, gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    monkeypatch.setitem(nvidia.BACKENDS, "tensorflow", nvidia._Backend("", "tensorflow"))
    assert ("CUDA_VISIBLE_DEVICES" in nvidia.why_no_gpu("tensorflow")) == hides


def test_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(nvidia, "NVIDIA_FILES", ())
    monkeypatch.setenv("PATH", "")
    assert nvidia.why_no_gpu("tensorflow") == ""
