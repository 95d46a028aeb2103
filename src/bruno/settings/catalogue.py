"""The short names that ship: models with the size of their weight files, GPUs with the provider's names for them.

`weights_gb` are the sums of the .safetensors files as the hub lists them (10^9 bytes, bf16). GPU names are Vast.ai's
(`reference`: the provider's gpu_names list; "A100 SXM4" and "A100 PCIE" are separate there).
"""

from __future__ import annotations

from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "qwen32b": {"id": "Qwen/Qwen2.5-Coder-32B-Instruct", "weights_gb": 65.5, "size_class": "32B", "gpu": "h200"},
    "qwen14b": {"id": "Qwen/Qwen2.5-14B-Instruct", "weights_gb": 29.5, "size_class": "14B", "gpu": "h100"},
    "qwen7b": {"id": "Qwen/Qwen2.5-7B-Instruct", "weights_gb": 15.2, "size_class": "7B", "gpu": "rtx4090"},
    "qwen72b": {"id": "Qwen/Qwen2.5-72B-Instruct", "weights_gb": 145.4, "size_class": "70B", "gpu": "h200"},
    "llama8b": {
        "id": "meta-llama/Llama-3.1-8B-Instruct",
        "weights_gb": 16.1,
        "size_class": "7B",
        "gpu": "rtx4090",
        "gated": True,
    },
    "llama70b": {
        "id": "meta-llama/Llama-3.3-70B-Instruct",
        "weights_gb": 141.1,
        "size_class": "70B",
        "gpu": "h200",
        "gated": True,
    },
    "gemma9b": {"id": "google/gemma-2-9b-it", "weights_gb": 18.5, "size_class": "7B", "gpu": "rtx4090", "gated": True},
    "mistral7b": {"id": "mistralai/Mistral-7B-Instruct-v0.3", "weights_gb": 14.5, "size_class": "7B", "gpu": "rtx4090"},
    "moonlight": {
        "id": "moonshotai/Moonlight-16B-A3B-Instruct",
        "weights_gb": 31.9,
        "size_class": "14B",
        "gpu": "h100",
        "trust_remote_code": True,
    },
    "demo": {
        "id": "demo",
        "weights_gb": 0.27,
        "size_class": "demo",
        "gpu": "h200",
        "behaviour": "over-refusal",
        "trials": 40,
        "hours": 0.1,  # measured: 320 s of engine on two CPU cores with bf16, half a minute before it
    },
}

GPUS: dict[str, dict[str, Any]] = {
    "h200": {"names": ["H200", "H200 NVL"], "memory_gb": 141},
    "h100": {"names": ["H100 SXM", "H100 PCIE", "H100 NVL"], "memory_gb": 80},
    "b200": {"names": ["B200"], "memory_gb": 180},
    "a100": {"names": ["A100 SXM4", "A100 PCIE"], "memory_gb": 80},
    "l40s": {"names": ["L40S"], "memory_gb": 48},
    "a6000": {"names": ["RTX A6000", "RTX 6000Ada"], "memory_gb": 48},
    "rtx4090": {"names": ["RTX 4090"], "memory_gb": 24},
    "rtx5090": {"names": ["RTX 5090"], "memory_gb": 32},
    "rtx3090": {"names": ["RTX 3090"], "memory_gb": 24},
}
