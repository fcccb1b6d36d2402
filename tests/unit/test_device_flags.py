"""fp32 means IEEE fp32, TF32 is a precision of its own, and a world leaves torch's switches as they were."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from parallel.config import PRECISIONS, ClusterConfig
from parallel.program.precision import ACTIVATION_BYTES, DTYPES, WEIGHT_BYTES
from parallel.results.comparison import compare
from parallel.results.environment import collect_environment
from parallel.results.report.provenance import provenance
from parallel.runtime.communication import gpu_facts as gpu_facts_module
from parallel.runtime.communication.device_flags import (
    DeviceFlags,
    check_precision,
    device_flags,
    flags_in_effect,
    kept_flags,
)
from parallel.runtime.communication.gpu_facts import QUERY, cudnn_text, gpu_facts, parse_nvidia_smi
from parallel.runtime.communication.opening import open_world
from tests.support.gpu import needs_gpu
from tests.support.made_records import made_record

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
IEEE = {"matmul": "ieee", "convolution": "ieee", "rnn": "ieee"}
TF32 = dict.fromkeys(IEEE, "tf32")


@pytest.fixture(autouse=True)
def switches() -> Iterator[dict[str, str]]:
    """Check that a test leaves the switches as they were."""
    before = flags_in_effect()
    yield before
    assert flags_in_effect() == before


def older_switches() -> tuple[bool, bool, bool]:
    """Return what readers of torch's older switches see; it raises where both generations disagree."""
    matmul = torch.get_float32_matmul_precision() != "highest"
    return torch.backends.cuda.matmul.allow_tf32, matmul, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_tf32_computes_in_tf32(precision: str) -> None:
    with device_flags(DeviceFlags.of(precision)):
        assert flags_in_effect() == (TF32 if precision == "tf32" else IEEE)
        assert older_switches() == (precision == "tf32",) * 3


def test_switches_set_by_others_are_restored() -> None:
    before = flags_in_effect()
    outer = DeviceFlags(tf32=True)
    with device_flags(outer):
        with pytest.raises(RuntimeError, match="inside"), device_flags(DeviceFlags()):
            torch.backends.cuda.matmul.allow_tf32 = True  # as Accelerate does
            raise RuntimeError("inside")
        assert flags_in_effect() == TF32 and older_switches() == (True,) * 3
    assert flags_in_effect() == before


def test_cudnn_times_its_algorithms_in_a_world_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
        for benchmark in (True, False):
            with device_flags(DeviceFlags(benchmark=benchmark)):
                assert torch.backends.cudnn.benchmark is benchmark
            assert torch.backends.cudnn.benchmark is before


def test_tools_keep_the_switches() -> None:
    with device_flags(DeviceFlags()):
        with kept_flags():
            torch.backends.cuda.matmul.allow_tf32 = True  # as Accelerate does
        assert flags_in_effect() == IEEE and older_switches() == (False,) * 3


def test_a_mix_of_both_generations_is_replaced() -> None:
    with device_flags(DeviceFlags()):
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix"):
            older_switches()
        DeviceFlags().set()
        assert older_switches() == (False,) * 3


def test_a_world_computes_in_fp32_unless_told_otherwise() -> None:
    cluster = ClusterConfig(device="cpu", threads=torch.get_num_threads())
    with open_world(cluster):
        assert flags_in_effect() == IEEE
    with pytest.raises(ValueError, match="trainer.precision=tf32 needs a GPU, and this run computes on CPUs"):
        with open_world(cluster, precision="tf32"):
            pass


def test_tf32_needs_its_tensor_cores() -> None:
    check_precision("tf32", GPU, lambda: True, lambda: "H100")
    check_precision("fp32", GPU, lambda: False, lambda: "V100")
    with pytest.raises(
        ValueError, match="precision=tf32 needs tensor cores .* which V100 does not have: use fp32"
    ):
        check_precision("tf32", GPU, lambda: False, lambda: "V100")


@pytest.mark.parametrize("forced, precision", [("1", "fp32"), ("1", "bf16"), ("0", "tf32")])
def test_the_environment_may_not_force_another_arithmetic(forced: str, precision: str) -> None:
    given = {"NVIDIA_TF32_OVERRIDE": forced}
    words = f"NVIDIA_TF32_OVERRIDE={forced} forces .* against trainer.precision={precision}: unset it"
    with pytest.raises(ValueError, match=words):
        check_precision(precision, GPU, lambda: True, lambda: "H100", given)
    check_precision("tf32" if forced == "1" else "fp32", GPU, lambda: True, lambda: "H100", given)
    check_precision("fp32", CPU, environment=given)


def test_older_torch_s_warning_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(value: bool) -> None:
        warnings.warn("Please use the new API settings to control TF32 behavior, such as …", stacklevel=1)

    with device_flags(DeviceFlags()), warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(torch._C, "_set_cublas_allow_tf32", warn)
        DeviceFlags().set()
        monkeypatch.undo()


def test_every_precision_has_sizes() -> None:
    for table in (WEIGHT_BYTES, ACTIVATION_BYTES, DTYPES):
        assert table.keys() == set(PRECISIONS)
    assert WEIGHT_BYTES["tf32"] == ACTIVATION_BYTES["tf32"] == DTYPES["tf32"].itemsize == 4


def test_cudnn_versions_as_text() -> None:
    assert [cudnn_text(number) for number in (91002, 8902, None)] == ["9.10.2", "8.9.2", None]


def test_the_table_of_nvidia_smi() -> None:
    assert len(QUERY) == 7
    table = (
        "GPU-1, 570.124.06, 700.00, 1980, 1980, 2619, Enabled, Disabled\n"
        "GPU-2, 570.124.06, [N/A], 135, 1380, [Unknown Error], Enabled, [N/A]\n"
        "no such line\n"
    )
    found = parse_nvidia_smi(table)
    assert found["GPU-1"] == {
        "driver": "570.124.06",
        "power_limit_w": 700.0,
        "sm_clock_mhz": 1980.0,
        "max_sm_clock_mhz": 1980.0,
        "max_memory_clock_mhz": 2619.0,
        "persistence": "Enabled",
        "mig": "Disabled",
    }
    assert found["GPU-2"].keys() == {"driver", "sm_clock_mhz", "max_sm_clock_mhz", "persistence"}
    assert found.keys() == {"GPU-1", "GPU-2"}


def test_the_facts_of_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is unknown to nvidia-smi."""
    uuids = ["aaaa", "GPU-bbbb"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"H{index}00")
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(uuid=uuids[index], total_memory=80 * 2**30),
    )
    known = {"GPU-aaaa": {"driver": "570.1", "power_limit_w": 700.0}}
    monkeypatch.setattr(gpu_facts_module, "ask_nvidia_smi", lambda: known)
    monkeypatch.setattr(gpu_facts_module, "cudnn_text", lambda version: None)
    with device_flags(DeviceFlags(tf32=True)):
        facts = gpu_facts(GPU)
    assert facts["driver"] == "570.1" and facts["flags"] == {**TF32, "cudnn_benchmark": True}
    assert facts["devices"] == [
        {"name": "H000", "memory_bytes": 80 * 2**30, "power_limit_w": 700.0},
        {"name": "H100", "memory_bytes": 80 * 2**30},
    ]
    assert facts.keys() == {"runtime", "driver", "cudnn", "nccl", "flags", "devices"}
    environment = collect_environment(["H000", "H100"], facts)
    record = made_record("single", environment=environment)
    assert record.environment["cuda"] == facts
    (comparison,) = compare([record])
    shown = dict(provenance(comparison.results[0], record).facts)
    assert "matmul=tf32" in shown["cuda flags"] and "power_limit_w=700.0" in shown["cuda devices"]
    assert "cuda cudnn" not in shown, "unknown"


def test_cpus_have_no_facts_of_gpus() -> None:
    assert gpu_facts(CPU) == {}


@needs_gpu
def test_fp32_products_on_a_gpu_have_24_bits() -> None:
    """TF32 rounds factors to 11 bits: its products are some thousand times less exact."""
    facts = gpu_facts(GPU)
    assert facts["cudnn"] and facts["driver"] and facts["devices"][0]["name"]
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(256, 256, 16, 16, dtype=torch.float64, generator=generator)
    kernel = torch.rand(256, 256, 3, 3, dtype=torch.float64, generator=generator)
    wide = torch.nn.functional.conv2d(a[:4].cuda(), kernel.cuda())
    matrix = a[0].flatten(1).cuda()

    def errors(precision: str) -> list[float]:
        with device_flags(DeviceFlags.of(precision)):
            narrow = torch.nn.functional.conv2d(a[:4].cuda().float(), kernel.cuda().float())
            product = matrix.float() @ matrix.float().T
        pairs = ((narrow, wide), (product, matrix @ matrix.T))
        return [float((found.double() / exact - 1).abs().max()) for found, exact in pairs]

    assert max(errors("fp32")) < 1e-5
    if torch.cuda.is_tf32_supported():
        assert min(errors("tf32")) > 1e-5
