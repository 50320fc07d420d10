"""Silences third-party messages that no user can act on."""

import logging
import re
import warnings

_UNUSED_PROCESSOR = re.compile(r"`(CLIP|Siglip)ImageProcessor` requires torchvision")


def silence() -> None:
    """Silences libraries' advertisements, deprecations and progress bars; warnings about a run are still shown."""
    import diffusers.utils.logging as diffusers_logging  # start-up time
    import transformers.utils.logging as transformers_logging
    from huggingface_hub.utils.tqdm import enable_progress_bars

    # Lightning 2.6 with torch 2.13, and diffusers 0.42 with huggingface_hub 1.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument", category=UserWarning)
    # Lightning 2.6 with torch 2.13, on several devices.
    warnings.filterwarnings("ignore", message=r"torch\.distributed\.nn\.functional\.all_gather is")
    # The first line of a run prints the number of validation panoramas.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # Logging counts steps, not epochs, so that short epochs lose no rows.
    warnings.filterwarnings("ignore", message="The number of training batches")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()  # also turns off the bars of downloads, which the next line restores
    enable_progress_bars()


def silence_image_processors() -> None:
    """Silences what transformers 5 says without torchvision when diffusers imports two processors that no pipeline of
    this package uses; neither is imported here, and the verbosity of transformers stays as it is."""
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_of_a_used_processor)


def _is_of_a_used_processor(record: logging.LogRecord) -> bool:
    return _UNUSED_PROCESSOR.match(record.getMessage()) is None


def _is_no_tip(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("💡")
