"""Selects the parameters that are trained (CubeDiff, section 4.1: the inflated attention layers)."""

from cubediff.models.backbone import TRAINABLE, Backbone, Trainable


def select_trainable_(backbone: Backbone, trainable: Trainable, lora_rank: int = 16) -> None:
    """Sets `requires_grad` of every parameter of the backbone's network.

    Args:
        backbone: The model family, which defines the parameters that each mode trains.
        trainable: "attention" (every attention layer), "value_output" (their value and output projections), "lora"
            (low-rank matrices added to their projections, arXiv 2106.09685, with alpha = rank), or "full". Input layers
            that read the position and mask channels are always trained.
        lora_rank: Rank of the low-rank matrices.

    Raises:
        ValueError: If `trainable` is none of these.
    """
    if trainable not in TRAINABLE:
        raise ValueError(f"trainable={trainable!r}: use 'attention', 'value_output', 'lora' or 'full'")
    if trainable == "lora":
        from peft import LoraConfig  # takes a second to import

        targets = list(backbone.lora_targets)
        backbone.network.add_adapter(LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=targets))
    for name, parameter in backbone.network.named_parameters():
        parameter.requires_grad_(backbone.trainable(name, trainable))
