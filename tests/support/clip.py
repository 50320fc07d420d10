"""A CLIP model without a download."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from support.stock import stock_2d


def small_clip(folder: Path) -> Path:
    """Saves a small random CLIP model of 32-pixel images and 16 tokens, with the tokenizer of a stock model."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = stock_2d().tokenizer
    texts = {
        **small,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=texts, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=24
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
