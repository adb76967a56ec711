"""The closed form of `engines/sizing` against exported graphs: every product, node by node."""

import pytest
from graph_costs import Counter, count, planned
from graph_costs import load as load_graph
from support import architectures, need_torch, one_block, tiny_config, tiny_reference

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.sizing import cost
from engines.sizing.cost import cond_operations, next_tokens, step_operations
from engines.sizing.decoder import decode_operations
from engines.sizing.memory import cond_weights, decode_norm_bytes, step_weights
from engines.spec.config import num_phi
from engines.spec.contract import GRAPHS
from tests.bundles import shared_bundle

BATCHES = ((1, 1), (1, 2), (3, 4), (2, 4))  # B, N: without guidance, with, mixed
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
RANDOM = {
    "bf16": architectures()["fixed-shared-phi0"],  # no l2-normalisation, one AdaLN for all blocks
    "fp16": one_block(architectures()["odd"]),  # 1x1 quantiser convolutions, no attention in the decoder
    "fp32": one_block(architectures()["no-phi"]),
    "fp32, 512 pixels": tiny_config(patch_nums=SCALES_512, vae={"share_quant_resi": 4}, depth=1, shared_aln=True),
}


def sizes_of(config, scale, images, rows, form="stepwise"):
    """Values of the varying dimensions of `step`."""
    L, P = config.scale_lengths[scale], config.scale_offsets[scale]
    return {"B": images, "N": rows, "L": L, "P": P, "M": next_tokens(config, scale, form)}


@pytest.fixture(scope="module")
def demo():
    return Bundle.open(DEMO_BUNDLE, verify=False)


@pytest.fixture(scope="module", params=RANDOM)
def traced(request):
    """Configuration, precision, longest sorted list, and the graphs that a run needs, of a random model."""
    need_torch()
    import onnx_ir as ir

    from var_export.build import make_graph
    from var_export.graphs.precision import PRECISIONS
    from var_export.graphs.quantize import Quantizer
    from var_export.graphs.trace import trace

    config, precision, max_top_k = RANDOM[request.param], request.param.split(",")[0], 16
    reference = tiny_reference(config)
    quantizer = Quantizer(reference.vae.quantize)
    graphs = {}
    for graph in ("cond", "step", "decode"):
        module = make_graph(graph, reference, quantizer, PRECISIONS[precision], max_top_k)
        graphs[graph] = ir.serde.serialize_model(trace(module, GRAPHS[graph], config, precision))
    return config, precision, max_top_k, graphs


@pytest.mark.parametrize(("images", "rows"), BATCHES)
def test_demo_step_at_every_scale(demo, images, rows):
    for scale in range(demo.config.num_scales):
        counter = count(demo.graph_path("step"), **sizes_of(demo.config, scale, images, rows))
        operations = step_operations(
            demo.config, demo.precision, scale, images=images, rows=rows, max_top_k=demo.max_top_k
        )
        assert counter.products() == planned(operations), f"scale {scale}"


@pytest.mark.parametrize(("images", "rows"), BATCHES)
def test_demo_cond_and_decode(demo, images, rows):
    cond, decode = demo.graph_path("cond"), demo.graph_path("decode")
    assert count(cond, N=rows).products() == planned(cond_operations(demo.config, "fp16", rows))
    assert count(decode, B=images).products() == planned(decode_operations(demo.config, "fp16", images))


@pytest.mark.slow
def test_random_models(traced):
    config, precision, max_top_k, graphs = traced
    for images, rows in BATCHES[1:3]:
        assert count(graphs["cond"], N=rows).products() == planned(cond_operations(config, precision, rows))
        assert count(graphs["decode"], B=images).products() == planned(decode_operations(config, precision, images))
        for scale in range(config.num_scales):
            counter = count(graphs["step"], **sizes_of(config, scale, images, rows))
            operations = step_operations(config, precision, scale, images=images, rows=rows, max_top_k=max_top_k)
            assert counter.products() == planned(operations), f"scale {scale}, {images} images in {rows} rows"


def check_weights(config, precision, max_top_k, graphs, repeated=0):
    """Named initializers are weights; of the exporter's own (`val_7`), all are tiny but the norms of `decode`."""
    sizes = {"B": 1, "N": 1, "L": config.scale_lengths[1], "P": config.scale_offsets[1], "M": config.scale_lengths[2]}
    found = {name: count(model, **sizes).constant_bytes() for name, model in graphs.items()}

    def named(graph):
        return sum(size for name, size in found[graph].items() if not name.startswith(("val_", "scalar_", "eq_")))

    assert named("cond") == cond_weights(config, precision)
    ranks = 8 * min(max_top_k, config.vae.vocab_size)  # int64, which `constant_bytes` does not look at
    assert named("step") == step_weights(config, precision, max_top_k) - ranks - repeated
    decode = cost.total_weights(decode_operations(config, precision, 1)) + decode_norm_bytes(config)
    extra = sum(found["decode"].values()) - decode
    assert 0 <= extra < 0.03 * decode  # unit scales of InstanceNormalization, sizes for Resize


def test_weights_of_the_demo(demo):
    graphs = {name: demo.graph_path(name) for name in ("cond", "step", "decode")}
    check_weights(demo.config, demo.precision, demo.max_top_k, graphs)


@pytest.mark.slow
def test_weights_of_random_models(traced):
    sizes = traced[0].transformer
    # `random_weights` scales the heads of all blocks alike, and the exporter stores equal constants once.
    repeated = 4 * sizes.heads * (sizes.depth - 1) if sizes.attn_l2_norm else 0
    check_weights(*traced, repeated)


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_mixing_codebook_entries_is_counted(form):
    bundle = Bundle.open(shared_bundle("tiny-smooth"), verify=False)
    config, images, rows = bundle.config, 2, 3
    load = {"images": images, "rows": rows, "max_top_k": bundle.max_top_k, "form": form, "smooth": True}
    scales = [step_operations(config, "fp32", scale, **load) for scale in range(config.num_scales)]
    if form == "stepwise":
        for scale, operations in enumerate(scales):
            found = count(bundle.graph_path("step"), **sizes_of(config, scale, images, rows))
            assert found.products() == planned(operations), f"scale {scale}"
        return
    fused = Counter(load_graph(bundle.graph_path("fused"), B=images, N=rows))
    operations = cond_operations(config, "fp32", rows) + decode_operations(config, "fp32", images)
    assert fused.products() == planned([*operations, *(op for scale in scales for op in scale)])


@pytest.mark.slow
def test_fused_does_the_same_work_with_the_weights_once():
    """Its products are those of all scales, less what the last scale would prepare; its weights are stored once."""
    bundle = Bundle.open(shared_bundle("tiny-fp32"), verify=False)
    config, precision, images, rows = bundle.config, bundle.precision, 2, 3
    fused = Counter(load_graph(bundle.graph_path("fused"), B=images, N=rows))
    operations = cond_operations(config, precision, rows)
    for scale in range(config.num_scales):
        operations += step_operations(
            config, precision, scale, images=images, rows=rows, max_top_k=bundle.max_top_k, form="fused"
        )
    operations += decode_operations(config, precision, images)
    assert fused.products() == planned(operations)
    stepwise = Counter(load_graph(bundle.graph_path("step"), B=1, N=1, L=4, P=1, M=9)).constant_bytes(at_least=64)
    stored = fused.constant_bytes(at_least=64)
    for name, size in stepwise.items():
        assert stored[f"step.{name}"] == size
    # ... and no second time under another name: what is left belongs to cond, decode or the scales.
    assert {name.split(".")[0].rsplit("_", 1)[0] for name in stored if not name.startswith("step.")} <= {
        "cond", "decode", "up", "down", "pos",
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_stays_in_float32(precision):
    """GEMMs, convolutions and attention take the precision; quantiser, resampling and prefix sums do not."""
    config = tiny_config(patch_nums=(1, 2, 3))
    operations = step_operations(config, precision, 1, images=1, rows=2, max_top_k=9)
    kinds = {(op.kind, op.name) for op in operations if op.dtype == "fp32"}
    fixed = {"phi", "up", "down"} | {f"sampler.{a}.{b}" for a in ("listed", "whole") for b in ("inside", "across")}
    if precision != "fp32":
        assert {name for _, name in kinds} == fixed
        assert {op.dtype for op in operations} == {"fp32", precision}
        assert {op.dtype for op in decode_operations(config, precision, 1)} == {precision}
    else:
        assert fixed < {name for _, name in kinds}
    assert (num_phi(config) > 0) is any(op.name == "phi" for op in operations)


def test_activations_need_less_than_the_graph_run_node_by_node(demo):
    """A run that fuses nothing keeps more alive; one that fuses well cannot need a small part of the estimate."""
    scale = demo.config.num_scales - 1
    for images, rows in ((1, 2), (8, 16)):
        counter = count(demo.graph_path("step"), **sizes_of(demo.config, scale, images, rows))
        operations = step_operations(demo.config, "fp16", scale, images=images, rows=rows, max_top_k=demo.max_top_k)
        estimate = max(op.live_bytes for op in operations)
        assert 0.5 * counter.most_alive() < estimate < counter.most_alive()
        counter = count(demo.graph_path("decode"), B=images)
        estimate = max(op.live_bytes for op in decode_operations(demo.config, "fp16", images))
        assert 0.3 * counter.most_alive() < estimate < counter.most_alive()
