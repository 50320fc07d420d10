"""A CLIP tokenizer that needs no files."""

from collections.abc import Sequence

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer


def byte_tokenizer(merges: Sequence[tuple[str, str]] = (), max_length: int = 77) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is every byte, inside and at the end of a word, and the results of `merges`.

    Args:
        merges: Pairs of tokens to merge, the most frequent first, as in a tokenizer's merges.txt.
        max_length: The longest sequence that the text encoder takes, start and end tokens included.
    """
    symbols = sorted(ByteLevel.alphabet())
    specials = ["<|startoftext|>", "<|endoftext|>"]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), *specials]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in merges], model_max_length=max_length)
