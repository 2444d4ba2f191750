"""What diffusers notes in the header of a LoRA file: peft's configuration of each network.

Only what defines the scale of the weights is used. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Name of the metadata in a file, as in diffusers (`LORA_ADAPTER_METADATA_KEY`).
_NAME = "lora_adapter_metadata"
#: Keys that have any value in a file of plain LoRA. Those that are not of the scale have no effect:
#: the tensors say which layers there are and of which ranks, the others are for training.
_PLAIN = frozenset(
    {
        "lora_alpha", "alpha_pattern", "use_rslora",
        "r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform",
        "layers_pattern", "lora_dropout", "fan_in_fan_out", "inference_mode", "task_type",
        "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision",
        "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config",
        "lora_ga_config", "ensure_weight_tying",
    }
)  # fmt: skip
#: Values of other keys that plain LoRA has. With other values of `init_lora_weights`, such as pissa
#: and olora, peft subtracts the initial product from the model's weights before training, so that
#: the file's weights go with those.
_PLAIN_VALUES = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True)
class Alphas:
    """The alphas of a network's layers."""

    alpha: float
    #: By the end of a layer's name; the first that matches goes before `alpha`.
    patterns: dict[re.Pattern[str], float]
    #: Whether the scale is alpha / sqrt(rank), not alpha / rank.
    is_rank_stabilised: bool

    def of(self, layer: str, rank: int) -> float:
        """The alpha by which the scale of a layer's weights is alpha / rank."""
        found = (alpha for pattern, alpha in self.patterns.items() if pattern.match(layer))
        return next(found, self.alpha) * (math.sqrt(rank) if self.is_rank_stabilised else 1.0)


def read(metadata: Mapping[str, str]) -> dict[str, Alphas]:
    """The alphas by network, of a file's metadata; empty where the file has none of diffusers'.

    Raises ValueError for another kind of LoRA, as the end of a sentence about the file.
    """
    networks: dict[str, dict[str, Any]] = {}
    try:
        for name, value in json.loads(metadata.get(_NAME, "{}")).items():
            network, _, key = name.partition(".")
            networks.setdefault(network, {})[key] = value
        alphas = {network: _alphas(own) for network, own in networks.items()}
    except (AttributeError, LookupError, TypeError, ValueError, re.error) as error:
        message = f"has {_NAME} in its metadata that can't be read: {error!r}"
        raise ValueError(message) from error
    for network, own in networks.items():
        for key, value in own.items():
            if value and key not in _PLAIN and value not in _PLAIN_VALUES.get(key, ()):
                message = f"asks in its metadata for {network}.{key} = {value!r}"
                raise ValueError(message)
    return alphas


def _alphas(own: Mapping[str, Any]) -> Alphas:
    patterns = own.get("alpha_pattern") or {}
    return Alphas(
        float(own["lora_alpha"]),
        # As peft matches them.
        {re.compile(rf"(.*\.)?({key})$"): float(alpha) for key, alpha in patterns.items()},
        bool(own.get("use_rslora")),
    )
