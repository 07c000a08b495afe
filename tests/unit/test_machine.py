"""What machine the course finds itself on."""

from anita_utils.machine import Machine, detect_machine


def test_detected_machine_counts_only_its_own_cores(monkeypatch):
    import os

    import torch

    found = detect_machine()
    assert 1 <= found.cores <= len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else found.cores >= 1
    assert found.memory_bytes > 2**28
    assert found.versions["torch"] == torch.__version__
    assert Machine.model_validate_json(found.model_dump_json()) == found


def test_a_t4_has_no_bf16_whatever_torch_says(monkeypatch):
    import torch

    class Properties:
        total_memory = 16 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: Properties)
    found = detect_machine()
    assert found.gpu == "Tesla T4"
    assert not found.bf16
