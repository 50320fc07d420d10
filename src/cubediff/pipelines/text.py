"""The text of a pipeline call: prompts or their embeddings, for every branch of guidance."""

from torch import Tensor

from cubediff.diffusion.guidance import Guidance
from cubediff.models.backbone import Backbone, Conditioning
from cubediff.pipelines.prompts import Prompts, prompts_by_panorama


def encode_prompts(
    backbone: Backbone,
    prompts: tuple[Prompts | None, Prompts | None],
    embeds: tuple[Tensor | None, Tensor | None],
    truncate: bool,
) -> tuple[Conditioning, Conditioning]:
    """The conditioning on the prompts, and on the negative prompts, of one panorama each or of several.

    Args:
        backbone: Encodes prompts.
        prompts: `prompt` and `negative_prompt` of the call.
        embeds: `prompt_embeds` and `negative_prompt_embeds`.
        truncate: See `Backbone.encode_captions`.

    Raises:
        ValueError: If a text is given in both forms, a prompt is invalid, or embeddings have another shape.
    """
    texts = [prompts_by_panorama(prompts[0]), prompts_by_panorama(prompts[1], allow_empty=True)]
    encoded = backbone.encode_text([*texts[0], *texts[1]], truncate)  # together: equal texts are encoded once
    own, negative = encoded.rows(0, len(texts[0])), encoded.rows(len(texts[0]), len(texts[0]) + len(texts[1]))
    for name, prompt, given in zip(("prompt", "negative_prompt"), prompts, embeds, strict=True):
        if prompt is not None and given is not None:
            raise ValueError(f"{name} and {name}_embeds are both given: pass one of them")
    if embeds[0] is not None:
        own = backbone.embedded_text(embeds[0], "prompt_embeds")
    if embeds[1] is not None:
        negative = backbone.embedded_text(embeds[1], "negative_prompt_embeds")
    for name in own.tensors:
        if own[name].shape[1:] != negative[name].shape[1:]:
            raise ValueError(
                f"text states of shape {tuple(own[name].shape)} for the prompts and {tuple(negative[name].shape)} for "
                "the negative ones: pass prompt_embeds and negative_prompt_embeds of the same length"
            )
    return own, negative


def branch_texts(guidance: Guidance, own: Conditioning, negative: Conditioning) -> list[Conditioning]:
    """The text of every branch: the last has the prompts, those without text the negative ones."""
    *others, _ = guidance.branches
    return [*(own if branch.text else negative for branch in others), own]
