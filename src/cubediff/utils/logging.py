"""Turning down what libraries say to everyone."""

import logging
import warnings


def silence() -> None:
    """Turns off what libraries say to everyone and nobody could act on; their warnings about a run stay."""
    import diffusers.utils.logging as diffusers_logging
    import huggingface_hub.utils as hub
    import transformers.utils.logging as transformers_logging

    # Lightning 2.6 against torch 2.13, and diffusers 0.42 against huggingface_hub 1.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument", category=UserWarning)
    # Lightning 2.6 against torch 2.13, on several devices.
    warnings.filterwarnings("ignore", message=r"torch\.distributed\.nn\.functional\.all_gather is")
    # The line that a run begins with says how many panoramas were held out.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # Logging goes by steps, not by epochs, so short epochs lose nothing.
    warnings.filterwarnings("ignore", message="The number of training batches")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tip)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()  # of files read in a moment; it turns off those of downloads too
    hub.enable_progress_bars()


def _no_tip(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("💡")
