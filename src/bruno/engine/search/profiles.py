"""Known good settings by family of models: trials that a search tries before any random one. Data, and where it comes from.

The numbers are what searches of the same shape (one direction, a tent of strengths over the blocks, attention and MLP apart)
ended with on one model of the family, as their makers published them on model cards on the hub. A model of another size
gets them in shares of its depth. They are starting points: the search goes on from what they score.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

Tent = tuple[float, float, float, float]
"""(max weight, position, min fraction, reach); position and reach as shares of L - 1."""


@dataclass(frozen=True)
class Profile:
    """One family's settings.

    Attributes:
        source: where they come from: the model they were found on, and what was published of the result.
        scope: "global" or "per layer".
        direction_index: block that the direction is taken from, as a share of L - 1.
        attention, mlp: the two tents.
    """

    source: str
    direction_index: float
    attention: Tent
    mlp: Tent
    scope: str = "global"


def _published(source: str, layers: int, index: float, attention: tuple[float, ...], mlp: tuple[float, ...]) -> Profile:
    """From a card's own units: (max weight, position in blocks, min weight, distance in blocks)."""
    last = layers - 1

    def tent(published: tuple[float, ...]) -> Tent:
        weight, position, lowest, distance = published
        return weight, position / last, lowest / weight, distance / last

    return Profile(source, index / last, tent(attention), tent(mlp))


_QWEN3 = _published(
    "Qwen3-4B-Instruct-2507, 36 blocks; card: refusals 100/100 to 19/100, KL 0.079",
    36,
    18.83,
    (1.42, 23.83, 1.38, 17.62),
    (1.18, 27.92, 0.58, 17.38),
)
_QWEN2 = _published(
    "VibeThinker-3B (Qwen2.5-Coder-3B), 36 blocks; card of prithivMLmods: refusals 64/100 to 6/100, KL 0.093",
    36,
    21.88,
    (1.37, 21.25, 1.36, 19.61),
    (1.49, 31.01, 1.48, 20.74),
)
_MISTRAL = _published(
    "Mistral-7B-Instruct-v0.3, 32 blocks; card of paoloronco: refusals to 4/100, KL 0.061",
    32,
    16.87,
    (1.44, 24.50, 1.01, 13.91),
    (1.18, 20.94, 1.16, 8.36),
)
_GEMMA = _published(
    "gemma-4-12B-it, 48 blocks; settings from its edited version's card",
    48,
    29.72,
    (1.25, 32.29, 0.65, 14.84),
    (1.06, 46.29, 1.04, 23.15),
)
_LLAMA = _published(
    "SmolLM2-360M-Instruct (llama architecture), 32 blocks; settings from its edited version's card",
    32,
    27.04,
    (1.32, 29.44, 0.46, 16.37),
    (1.19, 30.27, 0.22, 8.14),
)
_GRANITE = _published(
    "granite-4.2-8b, 40 blocks; card: refusals 99/100 to 12/100, KL 0.080",
    40,
    28.79,
    (1.45, 25.26, 1.40, 22.32),
    (1.48, 34.98, 1.43, 18.99),
)
_GPT_OSS = _published(
    "gpt-oss-20b, 24 blocks; settings from its edited version's card",
    24,
    11.34,
    (1.37, 15.90, 1.32, 13.02),
    (0.81, 17.46, 0.15, 10.68),
)


def _median(name: str, profiles: tuple[Profile, ...]) -> Profile:
    def middle(tents: list[Tent]) -> Tent:
        weight, position, fraction, reach = (median(values) for values in zip(*tents, strict=True))
        return weight, position, fraction, reach

    return Profile(
        f"no published settings for {name} were found: the medians of the other families",
        median(each.direction_index for each in profiles),
        middle([each.attention for each in profiles]),
        middle([each.mlp for each in profiles]),
    )


_KNOWN = (_QWEN3, _QWEN2, _MISTRAL, _GEMMA, _LLAMA, _GRANITE, _GPT_OSS)
_PHI = _median("Phi", _KNOWN)
_MOONLIGHT = _median("Moonlight (DeepSeek-V3 architecture)", _KNOWN)

PROFILES: dict[str, Profile] = {
    "llama": _LLAMA,
    "qwen2": _QWEN2,
    "qwen2_moe": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_next": _QWEN3,
    "mistral": _MISTRAL,
    "mixtral": _MISTRAL,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "granite": _GRANITE,
    "gpt_oss": _GPT_OSS,
    "phi": _PHI,
    "phi3": _PHI,
    "deepseek_v3": _MOONLIGHT,
}
"""`model_type` of the decoder's config -> its family's profile."""

# Each layer's own direction over the blocks about three quarters of the way, in three strengths: found by hand and by 1024
# space-filling trials on the demo model (docs/engine.md), in shares of the depth. One direction from a little past the
# middle, where single directions carry most of a refusal (Arditi et al. 2024, arXiv:2406.11717, choose layers there),
# removed whole from everything and from attention alone: other models may want those.
GENERAL: tuple[Profile, ...] = (
    Profile("each layer's own, whole", 0.6, (1.05, 0.75, 0.7, 0.3), (1.0, 0.75, 0.5, 0.2), "per layer"),
    Profile("each layer's own, not quite whole", 0.6, (0.9, 0.7, 0.7, 0.3), (0.9, 0.7, 0.5, 0.2), "per layer"),
    Profile("each layer's own, more than whole", 0.6, (1.2, 0.7, 0.7, 0.25), (1.2, 0.7, 0.5, 0.25), "per layer"),
    Profile("everywhere, whole", 0.6, (1.0, 0.8, 1.0, 0.6), (1.0, 0.8, 1.0, 0.6)),
    Profile("attention alone, whole", 0.6, (1.0, 0.8, 1.0, 0.6), (-0.1, 0.8, 1.0, 0.6)),
)
