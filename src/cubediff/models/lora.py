"""LoRA files: what `trainable="lora"` has trained, in the format that diffusers loads (arXiv 2106.09685)."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import save_file
from torch import Tensor, nn

_ADAPTER = "default"  # peft's name of an adapter that was given none


def save_lora(network: ModelMixin, base: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the LoRA adapter of a network; loaded into the initial network it gives the trained one.

    Layers that were trained as a whole, such as the first convolution, become LoRA matrices of full rank.

    Args:
        network: The trained network with its adapter.
        base: The initial values of the weights that were trained as a whole, by their names in the network.
        folder: Folder to write `pytorch_lora_weights.safetensors` to; it is created.
    """
    from peft.utils import get_peft_model_state_dict  # takes a second to import

    config = network.peft_config[_ADAPTER]
    weights: dict[str, Tensor] = get_peft_model_state_dict(network, adapter_name=_ADAPTER)
    trained = dict(network.named_parameters())
    ranks: dict[str, int] = {}
    for name, initial in base.items():
        layer, _, kind = name.rpartition(".")
        change = (trained[name] - initial.to(trained[name])).detach()
        if kind == "weight":
            down, up = _factors(change)
            weights |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
            ranks[layer] = len(down)
        else:
            weights[f"{layer}.lora_B.bias"] = change
    if has_bias := any(name.endswith(".lora_B.bias") for name in weights):  # then every layer needs one
        for name, weight in list(weights.items()):
            if name.endswith(".lora_B.weight"):
                weights.setdefault(f"{name.removesuffix('weight')}bias", weight.new_zeros(len(weight)))
    described = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted({*config.target_modules, *ranks}),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_bias": has_bias,
    }
    metadata = json.dumps(described, indent=2, sort_keys=True)
    folder.mkdir(parents=True)
    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
        folder / LORA_WEIGHT_NAME_SAFE,
        metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: metadata},
    )


def _factors(change: Tensor) -> tuple[Tensor, Tensor]:
    """LoRA matrices A (r, in, …) and B (out, r, 1 …) whose product is the change of a linear or convolution weight."""
    out, columns = len(change), change[0].numel()
    ones = [1] * (change.ndim - 2)
    if columns <= out:
        identity = torch.eye(columns, dtype=change.dtype, device=change.device)
        return identity.view(columns, *change.shape[1:]), change.reshape(out, columns, *ones)
    return change, torch.eye(out, dtype=change.dtype, device=change.device).view(out, out, *ones)


@contextmanager
def fusable_biases(network: nn.Module) -> Iterator[None]:
    """Lets adapters that are loaded inside be fused, although peft has one switch for the biases of all their layers.

    A layer without a bias has an adapter bias of 0, which peft refuses to fuse.
    """
    from peft.tuners.lora import LoraLayer  # takes a second to import

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*lora_bias=True.* no bias")
        yield
    for layer in network.modules():
        if isinstance(layer, LoraLayer) and layer.get_base_layer().bias is None:
            for adapter, matrix in layer.lora_B.items():
                bias = matrix.bias
                if layer.lora_bias[adapter] and isinstance(bias, Tensor) and not bias.any():
                    layer.lora_bias[adapter] = False
                    matrix.register_parameter("bias", None)
