"""Checks a model folder, which may come from anyone, before diffusers and transformers read it.

It names classes of known libraries, holds safetensors, and brings no code.
"""

import stat
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path

from diffusers import ModelMixin
from diffusers.schedulers import SchedulerMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cubediff.pipelines.folders import read_config, read_index

LIBRARIES = ("diffusers", "transformers")

# The base classes of components. A pipeline or an Auto class would read names of classes from further files.
_COMPONENTS = (ModelMixin, SchedulerMixin, PreTrainedModel, PreTrainedTokenizerBase)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_NUMBER = 10**7  # of a config's integers, which are sizes: of vocabularies, positions, timesteps


def check_components(
    folder: Path, names: Collection[str], packages: Collection[str] = (), weights: bool = True
) -> None:
    """Checks the components of a model folder.

    Args:
        folder: The folder.
        names: The components that are loaded, such as "unet"; others are ignored.
        weights: Whether all of it is loaded; if not, neither weights nor whether the tokenizer is complete is checked.
        packages: Packages besides `LIBRARIES` whose classes the folder may name, such as that of a registered backbone.

    Raises:
        ValueError: If a component names another library, or a class that is not a model, scheduler or
            tokenizer; brings code or an adapter; has pickled weights only; lacks files of its tokenizer; or a config
            is damaged or out of range. The message says what to do.
        OSError: If a file cannot be read.
    """
    index = read_index(folder)
    if not isinstance(index.get("_class_name"), str):
        raise ValueError(
            f"{folder / 'model_index.json'}: expected the name of a pipeline as _class_name, got "
            f"{index.get('_class_name')!a}: a model folder brings no code; export the model again"
        )
    for name in names:
        component = index.get(name)
        if component is None or component == [None, None]:
            continue
        if not (isinstance(component, list) and len(component) == 2 and all(isinstance(c, str) for c in component)):
            raise ValueError(
                f"{folder / 'model_index.json'}: {name} must be a library and a class, got {ascii(component)[:80]}"
            )
        library, class_name = component
        kind = _check_class(folder, name, library, class_name, packages)
        _check_files(folder / name, library, weights)
        if weights and issubclass(kind, PreTrainedTokenizerBase):
            _check_tokenizer(folder / name, kind)


def _check_class(folder: Path, name: str, library: str, class_name: str, packages: Collection[str]) -> type:
    where = f"{folder / 'model_index.json'}: {name} is {library!a}, {class_name!a}"
    if library not in LIBRARIES and library.partition(".")[0] not in packages:
        raise ValueError(
            f"{where}: expected a class of {' or '.join([*LIBRARIES, *sorted(packages)])}, because importing another "
            "module runs its code; use a folder that `cubediff train` or diffusers wrote"
        )
    try:
        found: object = getattr(import_module(library), class_name, None)
    except ImportError as error:
        raise ValueError(f"{where}, which cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, _COMPONENTS)):
        raise ValueError(
            f"{where}: expected a model, a scheduler or a tokenizer; use a folder that `cubediff train` or diffusers "
            "wrote"
        )
    return found


def _check_tokenizer(part: Path, kind: type[PreTrainedTokenizerBase]) -> None:
    """Transformers makes a tokenizer without words or without a maximum length of a folder that lacks files."""
    names = dict(kind.vocab_files_names)
    whole = names.pop("tokenizer_file", "tokenizer.json")
    if not (part / whole).is_file() and not all((part / name).is_file() for name in names.values()):
        raise ValueError(
            f"{part} holds neither {whole} nor {' and '.join(names.values())}, the tokenizer's vocabulary: copy or "
            "export the model again"
        )
    if not (part / "tokenizer_config.json").is_file():
        raise ValueError(f"{part} holds no tokenizer_config.json: copy or export the model again")


def _check_files(part: Path, library: str, weights: bool) -> None:
    """Checks a component's folder, before anything in it is read."""
    if not part.is_dir():
        return
    for file in sorted(part.iterdir()):
        mode = file.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{file} is not a regular file: remove it")
    if (code := part / f"{library}.py").exists():
        raise ValueError(f"{code}: a model folder brings no code; remove the file if the model does not need it")
    if (adapter := part / "adapter_config.json").exists():
        raise ValueError(f"{adapter}: adapters are not loaded; merge it into the model and save that as safetensors")
    if weights:
        _check_weights(part)
    for file in (*part.glob("config.json"), *part.glob("scheduler_config.json")):
        _check_config(file, read_config(file))


def _check_weights(part: Path) -> None:
    pickled = [file for file in sorted(part.iterdir()) if file.suffix in _PICKLES]
    if pickled and not any(part.glob("*.safetensors")):
        name = "model" if part.name.startswith("text_encoder") else "diffusion_pytorch_model"
        raise ValueError(
            f"{pickled[0]} holds pickled weights, which can run code when they are loaded: convert them with\n"
            '  python -c "import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], '
            "weights_only=True, map_location='cpu'); s.save_file({k: v.clone().contiguous() for k, v in "
            f'w.items()}}, sys.argv[2])" {pickled[0]} {part / name}.safetensors'
        )
    for index in part.glob("*.index.json"):
        files = read_config(index).get("weight_map")
        names = files.values() if isinstance(files, Mapping) else [files]
        for shard in names:
            if not (isinstance(shard, str) and shard.endswith(".safetensors") and Path(shard).name == shard):
                raise ValueError(
                    f"{index}: expected names of .safetensors files in its folder, got {ascii(shard)[:80]}: save the "
                    "weights as safetensors again"
                )


def _check_config(file: Path, config: Mapping[str, object]) -> None:
    for key, value in _leaves(config):
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            raise ValueError(f"{file}: {key} is {str(value)[:20]}, more than {_MAX_NUMBER}: copy the model again")
        if "attn_implementation" in key and isinstance(value, str) and "/" in value:
            raise ValueError(f"{file}: {key} is {ascii(value)[:80]}, code of the Hub, which is not run: remove the key")


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """The numbers and texts inside a JSON value, with the key that they stand under."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value
