"""Memory limits read from a made-up system: control groups of both versions, nested, in and out of containers."""

from __future__ import annotations

import pytest
import torch

from spectral_fast.probing.memory import SHARE, free_memory, memory_limit

CPU = torch.device("cpu")
GB = 10**9
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def system(root, membership, available_kb=100_000_000):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {2 * available_kb} kB\nMemAvailable: {available_kb} kB\n")
    (root / "proc/self/cgroup").write_text(membership)
    return root


def group(root, path, limit, used, cache, files):
    home = root / "sys/fs/cgroup" / path
    home.mkdir(parents=True, exist_ok=True)
    for name, text in zip(files[:2], (limit, used), strict=True):
        (home / name).write_text(f"{text}\n")
    (home / "memory.stat").write_text(f"anon 17\n{files[2]} {cache}\nactive_file 5\n")


def test_the_tightest_of_all_groups_above_counts(tmp_path):
    root = system(tmp_path, "0::/slice/job\n")
    group(root, "slice/job", "max", 3 * GB, 0, V2)  # no limit of its own
    group(root, "slice", 8 * GB, 5 * GB, 1 * GB, V2)
    assert free_memory(CPU, root) == 4 * GB
    group(root, "slice/job", 2 * GB, 1 * GB, 0, V2)
    assert free_memory(CPU, root) == 1 * GB


def test_version_1_by_its_own_line(tmp_path):
    root = system(tmp_path, "9:name=systemd:/\n4:cpuset,memory:/batch/run\n0::/\n")
    group(root, "memory/batch/run", 6 * GB, 2 * GB, GB // 2, V1)
    group(root, "memory", 9223372036854771712, 50 * GB, 0, V1)  # how version 1 writes "no limit"
    assert free_memory(CPU, root) == 4 * GB + GB // 2


@pytest.mark.parametrize("membership", ["4:memory:/docker/abc\n", "0::/../../outside\n", "", "nonsense\n"])
def test_in_a_container_the_mount_is_the_group(tmp_path, membership):
    root = system(tmp_path, membership)
    group(root, "memory" if "memory" in membership else "", 3 * GB, GB, 0, V1 if "memory" in membership else V2)
    assert free_memory(CPU, root) == 2 * GB


def test_without_limits_the_system_decides(tmp_path):
    root = system(tmp_path, "0::/\n", available_kb=1000)
    assert free_memory(CPU, root) == 1_024_000
    group(root, "", 1 * GB, 2 * GB, 0, V2)  # above its limit: nothing is left, not less
    assert free_memory(CPU, root) == 0
    assert free_memory(CPU, tmp_path / "nothing") > 0


def test_a_named_limit_is_taken_as_it_is():
    assert memory_limit(12345.6, CPU) == 12345 and 0 < memory_limit(None, CPU) <= SHARE * 2**62
    assert memory_limit(float("inf"), CPU) == 2**62
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="max_memory"):
            memory_limit(bad, CPU)
