"""Options of a panorama: values and checks, the same on the command line and in the lines of a jobs file.

Loads no library: options are checked before torch is imported.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, TypeVar

from cubediff.cubemaps.conventions import CONVENTIONS, LAYOUT_ALIASES, LAYOUTS
from cubediff.utils.text import is_unicode

MAX_SEED: Final = 2**63 - 1  # of torch.Generator
MAX_FACE_SIZE: Final = 8192  # pixels
MAX_STEPS: Final = 1000  # the timesteps that Stable Diffusion is trained with
SAMPLERS: Final = (
    "ddim",
    "dpm",
    "unipc",
    "euler",
)  # the keys of `cubediff.diffusion.schedulers.SAMPLERS`, which loads torch
DTYPES: Final = ("auto", "bf16", "fp16", "fp32")
MAX_FACE_FOV: Final = 150.0  # degrees; the centre of a wider face has hardly any pixels
MAX_HEIGHTS: Final = {"jpg": 32750, "png": 1 << 20, "webp": 8191}  # pixels, by file format: half of its largest width
FACE_KEYS = ("layout", "convention", "face_fov")  # of `Options`
PRESETS: Final[dict[str, dict[str, object]]] = {
    "fast": {"sampler": "dpm", "steps": 8, "guidance_scale": 3.5, "guidance_start": 0.0, "guidance_stop": 1.0},
    "balanced": {"sampler": "dpm", "steps": 20, "guidance_scale": 3.5, "guidance_start": 0.0, "guidance_stop": 1.0},
    "best": {"sampler": "ddim", "steps": 50, "guidance_scale": 3.5, "guidance_start": 0.0, "guidance_stop": 1.0},
}
"""Values of options by the name of the preset; all presets have the same options."""
PRESET_KEYS: Final = tuple(PRESETS["best"])

T = TypeVar("T")


class Expected(ValueError):
    """A value of an option is invalid; the message is what was expected, without the option's name."""


Check = Callable[[object], object]  # returns the value, or raises Expected


def integer(low: int, high: int) -> Check:
    """Checks an integer in a range, both ends included."""

    def check(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Expected(f"an integer from {low} to {high}")
        return value

    return check


def finite_number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Checks a finite number in a range, both ends included, and returns it as a float."""
    expected = f"a number from {low:g} to {high:g}"
    if high == math.inf:
        expected = "a finite number" if low == -math.inf else f"a finite number of at least {low:g}"

    def check(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Expected(expected)
        if not (math.isfinite(value) and low <= value <= high):
            raise Expected(expected)
        return float(value)

    return check


def boolean(value: object) -> object:
    """Checks that a value is true or false."""
    if not isinstance(value, bool):
        raise Expected("true or false")
    return value


def text(value: object) -> object:
    """Checks that a value is a text of valid Unicode."""
    if not isinstance(value, str) or not is_unicode(value):
        raise Expected("a text in Unicode")
    return value


def one_of(*choices: str) -> Check:
    """Checks that a value is one of some texts."""

    def check(value: object) -> object:
        if value not in choices:
            raise Expected(f"one of {', '.join(choices)}")
        return value

    return check


def unset_or(check: Check) -> Check:
    """Lets None pass a check: the option has no value."""
    return lambda value: None if value is None else check(value)


def _option(key: str, check: Check, default: T) -> T:
    """A field whose option is called `key` on the command line and in a jobs file."""
    return field(default=default, metadata={"key": key, "check": check})


@dataclass(frozen=True)
class Options:
    """How one panorama is sampled and written.

    The fields have their names in `generation.json`; those of `arguments` are arguments of the pipeline.

    Attributes:
        num_inference_steps: Denoising steps.
        guidance_scale, image_guidance_scale, guidance_rescale, guidance_start, guidance_stop, negative_prompt,
            paste_image, average_overlap, gain_correction: See `CubePipeline.__call__`.
        panorama_height: In pixels; None: twice the face size.
        face_size: In pixels; None: that of the model.
        sampler: One of `SAMPLERS`; None: the model's own scheduler.
        format: Of the panorama's file, one of `MAX_HEIGHTS`; None: jpg, or png for an edited panorama.
        save_faces: Also write the six faces.
        preset: The preset that the other values come from, one of `PRESETS`, or None; in no record.
        layout, convention, face_fov: How faces are written, see `cubediff.cubemaps.files.CubemapFormat`.
    """

    num_inference_steps: int = _option("steps", integer(1, MAX_STEPS), 50)
    guidance_scale: float = _option("guidance_scale", finite_number(0.0), 3.5)
    image_guidance_scale: float | None = _option("image_guidance_scale", unset_or(finite_number(0.0)), None)
    guidance_rescale: float = _option("guidance_rescale", finite_number(0.0, 1.0), 0.0)
    guidance_start: float = _option("guidance_start", finite_number(0.0, 1.0), 0.0)
    guidance_stop: float = _option("guidance_stop", finite_number(0.0, 1.0), 1.0)
    negative_prompt: str | None = _option("negative_prompt", unset_or(text), None)
    paste_image: bool = _option("paste_image", boolean, False)
    panorama_height: int | None = _option("height", unset_or(integer(2, max(MAX_HEIGHTS.values()))), None)
    face_size: int | None = _option("face_size", unset_or(integer(8, MAX_FACE_SIZE)), None)
    preset: str | None = _option("preset", unset_or(one_of(*PRESETS)), None)
    sampler: str | None = _option("sampler", unset_or(one_of(*SAMPLERS)), None)
    average_overlap: bool | None = _option("average_overlap", unset_or(boolean), None)
    gain_correction: bool = _option("gain_correction", boolean, False)
    format: str | None = _option("format", unset_or(one_of(*MAX_HEIGHTS)), None)
    save_faces: bool = _option("save_faces", boolean, False)
    layout: str = _option("layout", one_of(*LAYOUTS, *LAYOUT_ALIASES), "faces")
    convention: str = _option("convention", one_of(*CONVENTIONS), "cubediff")
    face_fov: float = _option("face_fov", finite_number(90.0, MAX_FACE_FOV), 90.0)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the pipeline's call; the negative prompts of a batch are passed together."""
        others = ("negative_prompt", "preset", "sampler", "format", "save_faces", *FACE_KEYS)
        return {key: value for key, value in vars(self).items() if key not in others}


OPTION_KEYS: Final = tuple(str(each.metadata["key"]) for each in fields(Options))


def check_value(name: str, value: object, check: Check) -> object:
    """The value of an option, as its check returns it.

    Args:
        name: The option's name in an error message.
        value: The value from the command line or a jobs file.
        check: The option's check.

    Raises:
        ValueError: If the value is invalid; says what was expected.

    Example:
        >>> check_value("line 2: steps", 20, integer(1, 1000))
        20
    """
    try:
        return check(value)
    except Expected as expected:
        raise ValueError(f"{name} must be {expected}, got {value!r:.200}") from None


def option_name(key: str) -> str:
    """The name of an option on the command line.

    Example:
        >>> option_name("guidance_scale")
        '--guidance-scale'
    """
    return f"--{key.replace('_', '-')}"


def parse_options(values: Mapping[str, object], name: Callable[[str], str], defaults: Options) -> Options:
    """The options of a panorama: values that are given, then those of a preset that is given, then the defaults.

    Args:
        values: Values by `OPTION_KEYS`; other keys are ignored.
        name: Names the option of a key in an error message.
        defaults: The options that `values` replace.

    Raises:
        ValueError: If a value is invalid.
    """
    if (preset := values.get("preset")) in PRESETS:
        values = {**PRESETS[str(preset)], **values}
    changed: dict[str, Any] = {
        each.name: check_value(name(key), values[key], each.metadata["check"])
        for each in fields(Options)
        if (key := each.metadata["key"]) in values
    }
    options = replace(defaults, **changed)
    if options.guidance_start > options.guidance_stop or options.guidance_start == 1:
        raise ValueError(
            f"{name('guidance_start')} is {options.guidance_start:g} and {name('guidance_stop')} "
            f"{options.guidance_stop:g}: guidance must start before the last step, and not after it stops"
        )
    if not options.save_faces and (ignored := [key for key in FACE_KEYS if key in values]):
        raise ValueError(f"{name(ignored[0])} says how faces are written: add {name('save_faces')}")
    format = options.format or "jpg"
    height, largest = options.panorama_height, MAX_HEIGHTS[format]
    if height is not None and height > largest:
        raise ValueError(
            f"{name('height')} is {height}, and a {format} file has at most {largest} rows of a panorama: use "
            "format png, or a smaller height"
        )
    return options


@dataclass(frozen=True)
class Execution:
    """How a call runs, which does not change what it generates beyond rounding.

    Attributes:
        batch: Panoramas that are sampled at once.
        device: torch device; None: the first available of CUDA, MPS and CPU.
        dtype: "bf16", "fp16" or "fp32"; "auto": bf16 on GPUs that have it, else fp32.
        offload: Keep in the GPU's memory only the model that is computing.
        vae_tiling: Encode and decode faces that are larger than the autoencoder's in tiles.
        sequential_guidance: Predict the branches of guidance one after the other.

    Raises:
        ValueError: If the dtype is unknown.
    """

    batch: int = 1
    device: str | None = None
    dtype: str = "auto"
    offload: bool = False
    vae_tiling: bool = False
    sequential_guidance: bool = False

    def __post_init__(self) -> None:
        check_value("--dtype", self.dtype, one_of(*DTYPES))

    @property
    def request(self) -> dict[str, object]:
        """What existing panoramas must have been generated with, under the keys of `generation.json`."""
        return {} if self.dtype == "auto" else {"dtype": self.dtype}
