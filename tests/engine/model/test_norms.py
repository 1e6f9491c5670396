"""speed.fused_norms computes and trains the same network, by the same names, in one graph."""

import copy

import pytest
import torch
from no_sync import no_sync
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from engine.config.load import load_config
from engine.model import build_model, frozen_norms_to_eval
from engine.model.forward import inductor_options, run_network
from engine.model.norms import AppliedReLU, FusedBasicBlock, FusedBottleneck, NormReLU, PaddedNormReLU, fuse_norms
from engine.profiling import flops
from engine.profiling.trace_table import NORM, classify
from engine.training import precise_bn
from kernels.norm_relu.fold import FoldSums

FUSED = "speed.fused_norms=true"
SMALL = "models.encoder.name=hrnet_w18_small"
CASES = [
    (SMALL,),
    (SMALL, "models.encoder.pad_widths=48"),
    (SMALL, "models.encoder.hrnet_incre_head=false", "models.decoder.batch_norm=false"),
    ("models.encoder.name=resnet18",),
    ("models.encoder.name=resnet26",),
]


def _config(*items):
    return load_config(["preset=demo", "models.decoder.inner_channels=8", *items])[0]


def _pair(*items, dtype=torch.float64):
    """The same detector plain and fused."""
    torch.manual_seed(0)
    plain = build_model(_config(*items)).to(dtype)
    fused = build_model(_config(*items, FUSED)).to(dtype)
    assert [*plain.state_dict()] == [*fused.state_dict()]
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def _image(dtype=torch.float64, size=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, size, size, generator=generator, dtype=dtype).to(memory_format=torch.channels_last)


def _step(model, image):
    """(logits, gradients, buffers) of a training step, each a list of tensors."""
    logits = model(image)
    sum(map_.sigmoid().square().mean() for map_ in logits).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [*logits], grads, [*model.buffers()]


def _largest(found, wanted):
    """Largest differences of three lists of tensors, each as a share of its tensor's largest entry."""
    return [
        max(((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in zip(xs, ys, strict=True))
        for xs, ys in zip(found, wanted)
    ]


@pytest.mark.parametrize("items", CASES, ids=lambda items: " ".join(item.split(".")[-1] for item in items))
def test_outputs_gradients_and_statistics_are_the_same(items):
    plain, fused = _pair(*items)
    for _ in range(2):  # the running statistics move from where they are
        found, wanted = _step(fused.train(), _image()), _step(plain.train(), _image())
    assert max(_largest(found, wanted)) < 1e-9
    tracked = [b.item() for b in fused.buffers() if b.dtype == torch.int64]
    assert len(tracked) > 20 and set(tracked) == {2}
    torch.testing.assert_close(fused.eval()(_image()), plain.eval()(_image()), rtol=0, atol=1e-9)


def test_in_float32_the_fused_one_is_no_worse():
    """Against float64, whose own rounding is 1e-9 of theirs. Gradients of a network amplify a rounding by 1000."""
    exact, _ = _pair(SMALL)
    plain, fused = _pair(SMALL, dtype=torch.float32)
    wanted = _step(exact.train(), _image())
    errors = [_largest(_step(model.train(), _image(torch.float32)), wanted) for model in (fused, plain)]
    assert all(ours <= 3 * theirs for ours, theirs in zip(*errors)), errors


def test_the_kernels_in_the_model():
    """Interpreted where there is no GPU; four blocks, stem and head."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    items = ("models.encoder.name=resnet10t", "trainer.kernels=triton")
    exact, _ = _pair(*items)
    plain, fused = (model.to(device) for model in _pair(*items, dtype=torch.float32))
    assert {m.kernels for m in fused.modules() if isinstance(m, NormReLU)} == {"triton"}
    wanted = [[t.to(device) for t in part] for part in _step(exact.train(), _image(size=32))]
    image = _image(torch.float32, 32).to(device)
    errors = [_largest(_step(model.train(), image), wanted) for model in (fused, plain)]
    assert all(ours <= 3 * theirs + 1e-6 for ours, theirs in zip(*errors)), errors


def test_bf16_autocast_as_in_training():
    plain, fused = _pair(SMALL, dtype=torch.float32)
    config = _config(SMALL, "trainer.precision=bf16")
    exact, _ = _pair(SMALL)
    wanted = exact.train()(_image())
    errors = []
    for model in (fused.train(), plain.train()):
        logits = run_network(model, _image(torch.float32), config)
        sum(map_.float().sigmoid().square().mean() for map_ in logits).backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())
        errors.append(max((a.double() - b).abs().max().item() for a, b in zip(logits, wanted)))
    assert errors[0] <= 2 * errors[1], errors


# --- what is fused ---


def test_every_relu_behind_a_norm_is_fused():
    """W44: 321 norms in the encoder; those of shortcuts and of fusions that are added up have no ReLU of their own."""
    model = build_model(_config("models.encoder.name=hrnet_w44", "models.encoder.pad_widths=48", FUSED))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    fused = [m for m in norms if isinstance(m, (NormReLU, PaddedNormReLU))]
    applied = [m for m in model.modules() if isinstance(m, AppliedReLU)]
    blocks = [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    assert all(type(block) in (FusedBasicBlock, FusedBottleneck) for block in blocks) and len(blocks) == 112
    left = [name for name, m in model.named_modules() if m in set(norms) - set(fused)]
    assert all("downsample" in name or "fuse_layers" in name or name.startswith("head") for name in left), left
    assert len(norms) == 333 and len(fused) == len(applied) == 262
    assert any(isinstance(m, PaddedNormReLU) for m in fused)
    plain = [name for name, m in model.named_modules() if type(m) is nn.ReLU]
    assert plain and all(name.endswith("fuse_act") or name.startswith("head") for name in plain)


class _Holder(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.encoder = nn.Sequential(*parts)


def test_what_is_not_fused():
    squeezed = BasicBlock(16, 16, attn_layer="se")
    odd = [
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, track_running_stats=False),
    ]
    rows = [nn.Sequential(norm, nn.ReLU()) for norm in odd]
    others = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU6(), nn.BatchNorm2d(4), nn.Identity(), nn.ReLU())
    holder = _Holder(squeezed, *rows, others)
    before = [type(m) for m in holder.modules()]
    assert fuse_norms(holder, "auto") == 0 and [type(m) for m in holder.modules()] == before
    assert fuse_norms(_Holder(BasicBlock(16, 16), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())), "auto") == 3


# --- what else works on a model ---


def test_frozen_norms_keep_their_relu_and_their_statistics():
    items = (SMALL, "models.encoder.freeze=stem")
    plain, fused = _pair(*items)
    for model in (plain.train(), fused.train()):
        frozen_norms_to_eval(model)
    before = fused.encoder.bn1.running_mean.clone()
    assert max(_largest(_step(fused, _image()), _step(plain, _image()))) < 1e-9
    assert torch.equal(fused.encoder.bn1.running_mean, before)


def test_a_copy_as_the_average_makes_it_is_fused_too():
    _, fused = _pair(SMALL)
    twin = copy.deepcopy(fused)
    assert max(_largest(_step(twin.train(), _image()), _step(fused.train(), _image()))) == 0
    assert isinstance(twin.encoder.bn1, NormReLU) and twin.encoder.bn1 is not fused.encoder.bn1


def test_precise_statistics_are_the_same():
    plain, fused = _pair(SMALL)
    for model in (plain, fused):
        names = precise_bn.trained_norms(model)
        precise_bn.estimate([model], names, [_image(), _image() + 1], _config(SMALL, "trainer.precision=float64"))
    for a, b in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_flops_and_the_table_of_the_step_know_it():
    assert flops.training_flops(_config(SMALL, FUSED)) == flops.training_flops(_config(SMALL)) > 1e9
    for name in ("_norm_moments_kernel", "norm_input_kernel", "dbnet_engine::norm_add_relu_gradient"):
        assert classify(name) == NORM


def test_one_graph_and_no_waiting():
    """Compiled without Inductor; statistics move as they do without compilation."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    _, fused = _pair(SMALL, dtype=torch.float32)
    twin = copy.deepcopy(fused)
    compiled = torch.compile(fused.train(), fullgraph=True, dynamic=False, backend=backend)
    with no_sync():
        wanted = _step(twin.train(), _image(torch.float32, 32))
    logits = compiled(_image(torch.float32, 32))
    assert len(graphs) == 1
    for got, value in zip([*logits, *fused.buffers()], [*wanted[0], *wanted[2]], strict=True):
        torch.testing.assert_close(got, value)  # the head's end is written otherwise when it is compiled


@pytest.mark.slow
def test_sums_of_gradients_are_folded_and_change_nothing_but_rounding():
    """By the pass that speed.fused_norms gives Inductor, in a backend that stops where Inductor would go on."""
    assert inductor_options(_config(), gpu=False) == {}
    (fold,) = inductor_options(_config(FUSED), gpu=False).values()
    assert isinstance(fold, FoldSums) and fold.uuid() == FoldSums().uuid()
    added = []

    def compiler(graph, inputs):
        fold(graph.graph)
        graph.recompile()
        nodes = graph.graph.find_nodes(op="call_function", target=torch.ops.dbnet_engine.norm_add_relu_gradient.default)
        added.append(["more" in node.kwargs for node in nodes])
        return make_boxed_func(graph.forward)

    plain, fused = _pair(SMALL)
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    compiled = torch.compile(fused.train(), fullgraph=True, dynamic=False, backend=backend)
    found, wanted = _step(compiled, _image()), _step(plain.train(), _image())
    assert max(_largest(found, wanted)) < 1e-9
    # The last blocks' outputs, four maps for the decoder, are read once.
    assert [(sum(row), len(row)) for row in added] == [(0, 0), (19, 23)]
