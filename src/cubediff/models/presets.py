"""Model configs of common Stable Diffusion checkpoints, so that a run can be planned without their weights.

Source: the `config.json` files of their public repositories.
"""

from typing import TypedDict

ModelConfig = dict[str, object]  # a config.json of diffusers or transformers, whose keys depend on the model class


class ModelConfigs(TypedDict):
    """The configs of a Stable Diffusion pipeline's models, by component."""

    unet: ModelConfig
    vae: ModelConfig
    text_encoder: ModelConfig


SD15: ModelConfigs = {
    "unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae": {
        "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
}
SD21: ModelConfigs = {
    "unet": {
        **SD15["unet"],
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "vae": SD15["vae"],
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
    },
}
# By Hub id, in lower case.
PRESETS: dict[str, ModelConfigs] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD15,
    "runwayml/stable-diffusion-v1-5": SD15,
    "compvis/stable-diffusion-v1-4": SD15,
    "stabilityai/stable-diffusion-2-1-base": SD21,
    "stabilityai/stable-diffusion-2-base": SD21,
}
