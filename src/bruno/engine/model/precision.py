"""Number formats: the checkpoint's own data type, quantised loading, and what of a model it cannot reach.

Reads the headers of safetensors files; loads no weight.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils.quantization_config import BitsAndBytesConfig, FineGrainedFP8Config, Mxfp4Config

from bruno.engine.events import Emit, Notice
from bruno.errors import InputError
from bruno.settings.engine import Loading

# As safetensors names them, and torch. Integers and 8-bit floats are packed weights of a quantised checkpoint.
_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_UNPACKED = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
_WORTH_SAYING = 0.2  # share of the weights


def stored_dtype(source: Path, config) -> str:
    """The torch name of the data type that most of a checkpoint's weights have.

    The files decide, not the configuration: one that lacks the entry, or says float32 over bfloat16 weights, would
    double the memory. Without safetensors files it is what the configuration says, float32 where that says nothing.
    """
    sizes: Counter[str] = Counter()
    for path in sorted(source.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    weight = file.get_slice(name)
                    if weight.get_dtype() in _FLOATS:
                        sizes[_FLOATS[weight.get_dtype()]] += torch.Size(weight.get_shape()).numel()
        except (SafetensorError, OSError):
            continue  # a file that is no weights is found when the model is read
    if sizes:
        return sizes.most_common(1)[0][0]
    text = config.get_text_config(decoder=True)
    named = getattr(config, "dtype", None) or getattr(text, "dtype", None) or "float32"
    return str(named).removeprefix("torch.")


def quantization_config(loading: Loading, config, dtype: torch.dtype, emit: Emit):
    """The library's configuration for a quantised (or an unpacked) load; None for a plain one.

    Checkpoints that are stored in MXFP4 or 8-bit floats are unpacked to `dtype`: an edit needs weights that can be
    written.

    Raises:
        InputError: bitsandbytes is missing, or the checkpoint is quantised in another way already.
    """
    stored = getattr(config, "quantization_config", None)
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    method = str(getattr(method, "value", method)) if stored else ""
    if method:
        if method not in _UNPACKED or loading.quantization != "none":
            raise InputError(
                f"The checkpoint is quantised already ({method}), and its packed weights cannot be edited"
                if method not in _UNPACKED
                else f"The checkpoint is stored in {method}: it cannot be quantised once more",
                fix="Name the original, unquantised model" if method not in _UNPACKED else "Leave out the quantization",
            )
        emit(Notice(text=f"The weights are stored in {method}; they are unpacked to {str(dtype).split('.')[-1]}"))
        return _UNPACKED[method](dequantize=True)
    if loading.quantization == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"--loading.quantization {loading.quantization} needs bitsandbytes", fix="pip install bitsandbytes"
        )
    if loading.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def element_size(name: str, parameter: nn.Parameter, model: nn.Module, loading: Loading, dtype: torch.dtype) -> float:
    """Bytes that one value of a parameter takes once loaded; bitsandbytes packs plain Linear modules but the head."""
    if loading.quantization != "none" and quantisable(name, parameter, model):
        return 0.53 if loading.quantization == "nf4" else 1.01  # with one scale for 64 values, or for a row
    return dtype.itemsize


def quantisable(name: str, parameter: nn.Parameter, model: nn.Module) -> bool:
    """Whether bitsandbytes packs this parameter: the weight of a plain Linear that is not the language head."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return parameter.dim() == 2 and type(owner) is nn.Linear and owner is not getattr(model, "lm_head", None)


def say_what_stays(model: nn.Module, loading: Loading, emit: Emit) -> None:
    """Experts fused into one 3-D parameter are no Linear modules: bitsandbytes leaves them as they are. Say so, with
    their share, because the memory that was hoped for is not saved."""
    if loading.quantization == "none":
        return
    total = sum(parameter.numel() for parameter in model.parameters())
    fused = [(n, p) for n, p in model.named_parameters() if p.dim() == 3 and "conv" not in n]
    share = sum(parameter.numel() for _, parameter in fused) / total
    if share > _WORTH_SAYING:
        emit(Notice(text=_stays(share, loading.quantization, [n for n, _ in fused]), level="warning"))


def _stays(share: float, quantization: str, names: Sequence[str]) -> str:
    return (
        f"{100 * share:.0f} % of the weights are experts fused into single parameters (such as {names[0]}), which "
        f"bitsandbytes cannot quantise: they keep their data type, and {quantization} saves little memory"
    )


def settle_quantised(model: nn.Module) -> None:
    """Keep bitsandbytes' weights readable and its log silent; call before the model first runs.

    On a CPU with AVX-512 a 4-bit layer repacks its weight at its first pass, into a layout that the dequantisation does
    not know: what an edit reads would be noise (relative error 1.4). And 8-bit layers log a line for every product.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
