"""A small UNet of Stable Diffusion's kinds of blocks."""

from diffusers import UNet2DConditionModel

from support.awake import awaken_

TEXT = 24  # width of its text states


def small_unet(**config: object) -> UNet2DConditionModel:
    """An awake UNet in float64 with attention at the first of its two resolutions and in the middle."""
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT,
        **config,
    )
    return awaken_(unet).double().eval()
