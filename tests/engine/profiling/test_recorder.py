"""The profile of a step: names to kinds, traces with and without a GPU to tables, and whole runs with it on."""

import inspect
import re
import time

import pytest
import torch
from torch.profiler import record_function

from engine import train
from engine.config.load import load_config
from engine.profiling import recorder
from engine.profiling import trace_table as table
from engine.profiling.flops import meta_model, trace
from engine.run.log import read_metrics
from engine.training import step
from tests.conftest import TINY, run_module


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64", table.CONV),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x32", table.CONV),
        ("cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_256x64_32x4_nhwc>", table.CONV),
        ("void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, false, false, true>", table.CONV),
        ("triton_tem_fused_convolution_7", table.CONV),
        ("aten::convolution_backward", table.CONV),
        ("aten::mkldnn_convolution", table.CONV),
        ("aten::conv_transpose2d", table.CONV),
        ("ConvolutionBackward0", table.CONV),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>", table.COPY),
        ("void cudnn::ops::convertTensor_kernel<float, __half, float, (cudnnKernelDataType_t)2>", table.COPY),
        ("Memcpy HtoD (Pinned -> Device)", table.COPY),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>", table.COPY),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<OpaqueType<2u>>", table.COPY),
        ("triton_poi_fused_convolution_0", table.COPY),
        ("triton_poi_fused__to_copy_convolution_12", table.COPY),
        ("triton_poi_fused_clone_3", table.COPY),
        ("aten::copy_", table.COPY),
        ("aten::cat", table.COPY),
        ("triton_poi_fused__native_batch_norm_legit_functional_add_relu_4", table.NORM),
        ("triton_red_fused_native_batch_norm_backward_threshold_backward_9", table.NORM),
        ("triton_per_fused__native_batch_norm_legit_functional_convolution_21", table.NORM),
        ("triton_poi_fused_convolution_relu_5", table.NORM),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<__half, float, 512, true, 1, true>", table.NORM),
        ("void at::native::batch_norm_backward_reduce_channels_last_kernel<4, __nv_bfloat16>", table.NORM),
        ("aten::native_batch_norm", table.NORM),
        ("## Call CompiledFxGraph fsspp63lljtj4osc7ffkocoq7zfwsbkglqjvg5awabwpgl", table.NORM),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>", table.NORM),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", table.MATMUL),
        ("ampere_sgemm_128x64_tn", table.MATMUL),
        ("aten::addmm", table.MATMUL),
        ("triton_tem_fused_addmm_2", table.MATMUL),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", table.COMMUNICATION),
        ("gloo:all_reduce", table.COMMUNICATION),
        ("void dali::kernels::warp::BatchWarpVariableSize<dali::kernels::AffineMapping<2>>", table.DATA),
        ("_sums_kernel", "loss"),
        ("_gradient_kernel", "loss"),
        ("dbnet_engine::db_loss_gradient", "loss"),
        ("draw_kernel", "targets"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>", "optimizer"),
        ("aten::_foreach_lerp_", "optimizer"),
        ("torch::autograd::AccumulateGrad", table.HOST),
        ("aten::empty", table.HOST),
    ],
)  # fmt: skip
def test_names(name, kind):
    assert table.classify(name) == kind


def test_what_a_name_does_not_tell_the_range_or_the_operator_does():
    add = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>"
    assert [table.classify(add, part) for part in ("forward", "loss", "targets", "EMA")] == [
        table.NORM, "loss", "targets", "optimizer",
    ]  # fmt: skip
    assert table.classify("ampere_sgemm_128x64_tn", "forward", "aten::cudnn_convolution") == table.CONV
    assert table.classify("aten::copy_", "loss") == table.COPY  # every copy is listed as one
    assert table.classify("some_new_kernel", "forward", "aten::relu") == table.OTHER


def _event(cat, name, start, duration, thread=1, **given):
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration, "tid": thread, "args": given}


def test_operators_count_their_own_time():
    events = [
        _event("user_annotation", "ProfilerStep#1", 0, 400),
        _event("user_annotation", "forward", 0, 100),
        _event("cpu_op", "aten::conv2d", 10, 60),
        _event("cpu_op", "aten::mkldnn_convolution", 20, 40),
        _event("user_annotation", "backward", 100, 200),
        _event("cpu_op", "dbnet_engine::db_loss_gradient", 110, 30),
        _event("cpu_op", "aten::mul", 115, 20),
        _event("cpu_op", "aten::copy_", 150, 50, **{
            "Input Dims": [[2, 8, 4, 4], [2, 8, 4, 4], []],
            "Input Strides": [[128, 16, 4, 1], [128, 1, 32, 8], []],
        }),
        _event("user_annotation", "gloo:all_reduce", 120, 70, thread=9),
    ]  # fmt: skip
    found = table.read(events)
    own = {piece.name: (piece.us, piece.part, piece.kind) for piece in found.pieces}
    assert own["aten::conv2d"] == (20, "forward", table.CONV)
    assert own["aten::mkldnn_convolution"] == (40, "forward", table.CONV)
    assert own["forward"] == (40, "forward", table.HOST)
    assert own["aten::mul"] == (20, "backward", "loss")
    assert own["backward"] == (120, "backward", table.HOST)
    rows = {row[0]: row[1:] for row in table.part_rows(found, 2)}
    assert rows["forward"] == (0.05, 0, 0.25) and rows["backward"] == (0.1, 0, 0.5)
    assert rows["communication"] == (0.035, 0, 0.175) and rows["other (the loop itself)"] == (0.05, 0, 0.25)
    kinds = dict(table.kind_rows(found))
    assert kinds == pytest.approx({table.CONV: 0.15, table.COPY: 0.125, "loss": 0.075, table.HOST: 0.65})
    (copy,) = table.copy_rows(found)
    assert copy == ("aten::copy_", "backward", True, 1, 50, 0.125, "2x8x4x4")


def test_kernels_belong_to_the_range_in_which_they_were_launched():
    def launch(start, number, thread=1):
        return _event("cuda_runtime", "cudaLaunchKernel", start, 2, thread, correlation=number)

    events = [
        _event("user_annotation", "forward", 0, 100),
        _event("cpu_op", "aten::cudnn_convolution", 8, 10, **{"External id": 5}),
        launch(10, 1),
        launch(30, 2),
        _event("user_annotation", "backward", 100, 200),
        launch(150, 3, thread=2),  # autograd's own thread
        _event("cpu_op", "dbnet_engine::db_loss_gradient", 170, 20, thread=2),
        launch(175, 4, thread=2),
        launch(200, 5, thread=2),
        _event("kernel", "ampere_sgemm_128x64_tn", 500, 80, 7, correlation=1, **{"External id": 5}),
        _event("kernel", "triton_poi_fused_relu_0", 580, 20, 7, correlation=2),
        _event("kernel", "triton_poi_fused_clone_1", 600, 30, 7, correlation=3),
        _event("kernel", "void at::native::vectorized_elementwise_kernel<4>", 630, 10, 7, correlation=4),
        _event("kernel", "ncclDevKernel_AllReduce_Sum_f32", 640, 50, 8, correlation=5),
        launch(60, 6, thread=5),
        _event("kernel", "dali::kernels::Warp", 700, 40, 9, correlation=6),
        _event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 990, 10, 7, correlation=99),
    ]
    found = table.read(events)
    assert found.on_gpu and [(p.part, p.kind, p.us) for p in found.pieces] == [
        ("forward", table.CONV, 80),
        ("forward", table.NORM, 20),
        ("backward", table.COPY, 30),
        ("backward", "loss", 10),
        ("communication", table.COMMUNICATION, 50),
        ("other", table.DATA, 40),
        ("other", table.COPY, 10),
    ]
    rows = {row[0]: row[1:] for row in table.part_rows(found, 1)}
    assert rows["forward"] == (0.1, 0.1, 0.1) and rows["backward"] == pytest.approx((0.2, 0.04, 0.04))
    assert rows["communication"] == (0, 0.05, 0.05)
    assert rows["other, and the device's idle time"] == pytest.approx((0, 0.05, 0.86))
    assert sum(share for _, share in table.kind_rows(found)) == pytest.approx(1)
    assert [(row.name, row.part) for row in table.copy_rows(found)] == [
        ("triton_poi_fused_clone_1", "backward"), ("Memcpy HtoD (Pinned -> Device)", "other"),
    ]  # fmt: skip


def test_the_report_has_device_times_where_there_is_a_gpu():
    events = [
        _event("user_annotation", "forward", 0, 100),
        _event("cuda_runtime", "cudaLaunchKernel", 10, 2, correlation=1),
        _event("kernel", "triton_poi_fused_relu_0", 500, 250, 7, correlation=1),
    ]
    config = load_config([*TINY, "data.batch_size=4"])[0]
    text = recorder.report(config, table.read(events), steps=1, wall=0.00075, peak=1e12, dtype=torch.bfloat16)
    assert "| part of the step | host ms | device ms | share of the step |" in text
    assert "| forward | 0.100 | 0.250 | 33.3% |" in text and "| BatchNorm, pointwise | 100.0% |" in text
    flops = 3 * sum(row.flops for row in trace(meta_model(config), 96, 128))
    assert "5333.33 images/s" in text and f"{flops * 4 / 0.00075 / 1e12:.1%} of the matrix peak" in text


def _settings(tmp_path, name, *more):
    return [*TINY, f"name={name}", f"run_root={tmp_path}", "trainer.max_epochs=1", "data.synthetic_train=16", *more]


def _rows(text, head):
    """{first cell: the others} of the table whose heading begins with `head`."""
    text = text.split(f"| {head}")[1].split("\n\n")[0]
    return {cells[0]: cells[1:] for line in text.splitlines() if (cells := line.strip("| ").split(" | "))}


def test_a_run_with_it_writes_trace_and_table_and_ends_with_the_same_loss(tmp_path, capsys):
    settings = ("trainer.ema=true", "trainer.device=cpu")
    assert train.main(_settings(tmp_path, "plain", *settings)) == 0
    capsys.readouterr()
    assert train.main(_settings(tmp_path, "run", "trainer.profile=true", *settings)) == 0
    text = (tmp_path / "run" / "profile" / "profile.md").read_text()
    assert text in capsys.readouterr().out and (tmp_path / "run" / "profile" / "trace.json.gz").stat().st_size > 1e4
    rows = _rows(text, "part of the step")
    shares = [float(rows[part][-1].rstrip("%")) for part in (*table.PARTS, "other (the loop itself)")]
    assert sum(shares) == pytest.approx(100, abs=1) and min(shares[:4] + shares[4:8]) > 0
    rows = _rows(text, "kind of work")
    kinds = {kind: float(rows[kind][0].rstrip("%")) for kind in table.KINDS if kind in rows}
    assert sum(kinds.values()) == pytest.approx(100, abs=1)
    assert kinds[table.CONV] > 2 and kinds[table.NORM] > 2 and kinds["loss"] > 1 and kinds["optimizer"] > 1
    assert f"Profile of {recorder.STEPS} steps" in text and "| aten::copy_ |" in text and "GFLOP/s of the model" in text
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / run / "metrics.jsonl") if r["kind"] == "train"]
        for run in ("plain", "run")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    assert (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "plain" / "profile").exists()


def test_ranks_send_gradients_beside_the_rest_and_only_rank_0_records(tmp_path):
    settings = _settings(tmp_path, "two", "trainer.profile=true")
    done = run_module("engine.train", *settings, ranks=2, cwd=tmp_path, check=True)
    assert done.stdout.count("# Profile of 1 steps") == 1  # the epoch has 4
    text = (tmp_path / "two" / "profile" / "profile.md").read_text()
    assert float(_rows(text, "part of the step")["communication, beside the rest"][0]) > 0


@pytest.mark.parametrize("steps", [1, 3])
def test_an_epoch_that_is_too_short_is_told(tmp_path, capsys, steps):
    assert train.main(_settings(tmp_path, "short", "trainer.profile=true", f"data.synthetic_train={2 * steps}")) == 0
    assert f"nothing recorded, an epoch of {steps} steps is too short" in capsys.readouterr().out


def test_the_matrix_peak_is_a_rate():
    side, threads = 256, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = [recorder.matrix_peak(torch.device("cpu"), torch.float32, side) for _ in range(3)]
        a = torch.randn(side, side)
        start = time.perf_counter()
        torch.mm(a, a)
        one = 2 * side**3 / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert max(rates) > one / 2 and max(rates) > 1e9


def test_ranges_of_the_step_cost_little_without_a_profiler():
    start = time.perf_counter()
    for _ in range(1000):
        with record_function("forward"):
            pass
    assert (time.perf_counter() - start) / 1000 < 200e-6  # 10 us here; 9 of them in a step


def test_the_key_is_off_by_default():
    assert load_config([])[0].trainer.profile is False


def test_the_ranges_of_the_step_are_the_parts_of_the_table():
    source = inspect.getsource(step.train_step)
    assert re.findall(r'record_function\("(.*?)"\)', source) == list(table.PARTS)
