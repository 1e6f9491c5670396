import gc
import json
import os

import pytest
import torch

from bench import harness, verdict


def test_device_slug_is_a_file_name_with_the_cores():
    slug = harness.device_slug()
    assert slug == harness.re.sub(r"[^a-z0-9-]", "", slug) and f"-{len(os.sched_getaffinity(0))}-cores" in slug


@pytest.mark.parametrize("planted", [False, True])
def test_a_measured_row(benchmark, planted):
    """16 Mi floats are 64 MiB; the plant doubles the time of ours; threads and the collector are as before."""
    threads = torch.get_num_threads()
    calls = []

    def ours():
        calls.append(1)
        return torch.ones(16 << 20)

    got = harness.measure(
        benchmark,
        "ones",
        "64 MiB",
        ours,
        lambda: torch.ones(16 << 20),
        peer_name="the same",
        moved_bytes=64 << 20,
        rounds=5,
        planted=planted,
    )
    assert got.n == 5 and got.metric == "cpu_ratio" and got.unit == "of the same"
    assert got.p20 <= got.p50 <= got.p80 and got.ms[0] <= got.ms[1] <= got.ms[2]
    assert 63 < got.peak_mib < 67
    assert got.rate_unit == "GB/s" and got.rate == pytest.approx((64 << 20) / got.ms[1] / 1e6)
    assert (1.4 < got.p50 < 2.8) if planted else (0.7 < got.p50 < 1.4)
    assert torch.get_num_threads() == threads and gc.isenabled()
    assert json.loads(verdict.line(got))["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_row_on_a_cpu_needs_a_peer():
    with pytest.raises(AssertionError, match="needs a peer"):
        harness.measure(None, "ones", "64 MiB", lambda: None)
