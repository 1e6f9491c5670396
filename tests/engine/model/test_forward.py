"""speed.*: what is compiled, with which options, how DDP is set up, and that none of it changes the result."""

import dataclasses
import warnings

import pytest
import torch
import torch.distributed as dist

from engine.config.load import load_config
from engine.distributed import Ranks
from engine.model import build_model
from engine.model.forward import BUFFERS, blocks, compiled, data_parallel, inductor_options
from pipelines.errors import UserError

CPU = torch.device("cpu")


def _model(*items):
    torch.manual_seed(0)
    config = load_config(["preset=demo", "models.decoder.inner_channels=8", "trainer.compile=true", *items])[0]
    return build_model(config), config


@pytest.fixture
def graphs(monkeypatch):
    """torch.compile and Module.compile with a backend that only counts: {"graphs": n, "options": last ones}."""
    seen = {"graphs": 0, "options": None}

    def backend(graph, inputs):
        seen["graphs"] += 1
        return graph.forward

    compile_ = torch.compile

    def recorded(model, dynamic=None, options=None, **others):
        seen["options"], seen["dynamic"] = options, dynamic
        return compile_(model, dynamic=dynamic, backend=backend, **others)

    monkeypatch.setattr(torch, "compile", recorded)
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()
    torch._dynamo.config.optimize_ddp = True
    torch._functorch.config.activation_memory_budget = 1.0


def test_options_are_inductors_and_only_what_is_asked_for(graphs):
    model, config = _model()
    compiled(model, config)
    assert (graphs["options"], graphs["dynamic"]) == ({}, False)
    asked = ["speed.max_autotune=true", "speed.cuda_graphs=true", "speed.force_layout=true"]
    options = inductor_options(_model(*asked, "speed.combo_kernels=true")[1], gpu=True)
    asked = ["combo_kernels", "force_layout_optimization", "max_autotune", "triton.cudagraphs"]
    assert sorted(options) == asked
    assert inductor_options(_model("speed.cuda_graphs=true")[1], gpu=False) == {}
    known = torch._inductor.list_options()
    assert all(name in known for name in options), "torch would refuse them"


def test_without_compile_the_model_is_called_as_it_is():
    model, config = _model("trainer.compile=false", "speed.scope=blocks")
    assert compiled(model, config) is model and model._compiled_call_impl is None


def test_without_a_compiler_one_line_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model, config = _model()
    with pytest.raises(UserError, match="there is no no-such-compiler"):
        compiled(model, config)


def test_memory_budget_and_ddp_choice_reach_torch(graphs):
    model, config = _model("speed.memory_budget=0.5", "speed.optimize_ddp=no_optimization")
    compiled(model, config)
    assert torch._functorch.config.activation_memory_budget == 0.5
    assert torch._dynamo.config.optimize_ddp == "no_optimization"


@pytest.mark.parametrize("name", ["hrnet_w18_small", "lcnet_035", "resnet18", "convnext_atto"])
def test_blocks_are_disjoint_and_hold_nearly_all_weights(name):
    model, _ = _model(f"models.encoder.name={name}")
    found = list(blocks(model))
    inside = [id(p) for block in found for p in block.parameters()]
    assert len(inside) == len(set(inside))
    total = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for block in found for p in block.parameters()) > 0.85 * total


def test_alike_blocks_share_a_graph_and_compute_the_same(graphs):
    """hrnet_w30 has 1, 4 and 3 modules in its stages; the four of stage 3 are alike, and so are two of stage 4."""
    model, config = _model("models.encoder.name=hrnet_w30", "speed.scope=blocks")
    image = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        want = model.eval()(image)
    names = list(model.state_dict())
    forward = compiled(model, config)
    with torch.no_grad():
        assert torch.equal(forward(image), want)
    assert list(forward.state_dict()) == names
    assert graphs["graphs"] <= len(list(blocks(model))) - 3


@pytest.mark.slow
def test_no_block_falls_back_to_eager(graphs, monkeypatch):
    """Blocks compiled in place share one limit of graphs: sizes and modes times blocks must fit into it."""
    # Two sizes, two modes: a limit of 4 would be gone after four blocks.
    monkeypatch.setattr("engine.model.forward.GRAPHS", 4)
    limits = {"recompile_limit": 1, "accumulated_recompile_limit": 1, "fail_on_recompile_limit_hit": True}
    model, config = _model("models.encoder.name=hrnet_w18_small", "speed.scope=blocks")
    with torch._dynamo.config.patch(**limits):
        forward = compiled(model, config)
        for size in (64, 96):
            image = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
            sum(map_.sum() for map_ in forward.train()(image)).backward()
            with torch.no_grad():
                forward.eval()(image)
    kinds = len(list(blocks(model)))
    assert graphs["graphs"] == 4 * kinds, "every block of hrnet_w18_small is of a kind of its own"


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_is_set_up_as_decided(group):
    model, config = _model("speed.bucket_mib=7")
    assert data_parallel(model, config, Ranks(0, 0, 1, CPU)) is model
    with warnings.catch_warnings(action="error"):
        wrapped = data_parallel(model, config, Ranks(0, 0, 2, CPU))
    assert wrapped.module is model and wrapped.bucket_bytes_cap == 7 * 2**20
    assert wrapped.gradient_as_bucket_view and wrapped.static_graph and not getattr(wrapped, BUFFERS)
    trainer = dataclasses.replace(config.trainer, accumulate=2)
    accumulating = data_parallel(model, dataclasses.replace(config, trainer=trainer), Ranks(0, 0, 2, CPU))
    assert not accumulating.static_graph, "no_sync and static_graph do not mix"


@pytest.mark.parametrize("choice, whole", [("ddp_optimizer", False), ("no_optimization", True)])
def test_ddp_splits_the_graph_or_keeps_it_whole(group, graphs, choice, whole):
    model, config = _model("models.encoder.name=resnet18", f"speed.optimize_ddp={choice}", "speed.bucket_mib=4")
    forward = data_parallel(compiled(model.train(), config), config, Ranks(0, 0, 2, CPU))
    image = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    sum(map_.sum() for map_ in forward(image)).backward()
    assert (graphs["graphs"] == 1) == whole
    assert all(p.grad is not None for p in model.parameters())
