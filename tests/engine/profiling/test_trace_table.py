"""The table of a step, from a profiler's trace."""

import inspect
import re

import pytest

from engine.profiling import trace_table as table
from engine.training import step


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


def test_the_ranges_of_the_step_are_the_parts_of_the_table():
    source = inspect.getsource(step.train_step)
    assert re.findall(r'record_function\("(.*?)"\)', source) == list(table.PARTS)
