"""Model folders of others: no name in them imports or runs code, and what would is refused before it is read.

Every attack creates a canary file if it wins. The controls run the same attack with its protection off.
"""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from cubediff.pipelines import base, trust
from cubediff.pipelines import cubediff as pipeline_module
from cubediff.pipelines.cubediff import CubeDiffPipeline
from cubediff.pipelines.loading import load_for_generation, load_pipeline, pipeline_class, tiny_random

CODE = "import pathlib; pathlib.Path({canary!r}).touch()\nclass X: pass\nclass AutoencoderKL: pass\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "export"
    tiny_random().save_pretrained(folder)
    return folder


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.canary,)


class Attack:
    """A copy of the model, and what an attacker changes in it."""

    def __init__(self, model: Path, tmp_path: Path) -> None:
        self.folder, self.canary = tmp_path / "export", tmp_path / "canary"
        self.code = CODE.format(canary=str(self.canary))
        shutil.copytree(model, self.folder)

    def index(self, **entries: Any) -> None:
        self.json("model_index.json", **entries)

    def json(self, name: str, **entries: Any) -> None:
        file = self.folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    def write(self, name: str, content: bytes | str | None = None) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else (content or self.code).encode())

    def pickle(self, name: str) -> None:
        content = io.BytesIO()
        torch.save(Hostile(str(self.canary)), content)
        self.write(name, content.getvalue())


@pytest.fixture
def attack(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    made = Attack(model, tmp_path)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "canary_module.py").write_text(made.code)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delitem(sys.modules, "canary_module", raising=False)
    return made


def nested_pipeline(attack: Attack) -> None:
    """A component that is a pipeline itself, whose own model_index.json names the module."""
    attack.index(unet=["diffusers", "DiffusionPipeline"])
    attack.write(
        "unet/model_index.json",
        json.dumps({"_class_name": "StableDiffusionPipeline", "vae": ["canary_module", "X"]}),
    )


def pickles_only(suffix: str) -> Callable[[Attack], None]:
    def change(attack: Attack) -> None:
        (attack.folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        attack.pickle(f"unet/diffusion_pytorch_model.{suffix}")

    return change


def sharded_pickle(attack: Attack) -> None:
    (attack.folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    attack.pickle("unet/other.bin")
    attack.write("unet/x.safetensors", b"")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "other.bin"}}
    attack.write("unet/diffusion_pytorch_model.safetensors.index.json", json.dumps(index))


def fifo(name: str) -> Callable[[Attack], None]:
    def change(attack: Attack) -> None:
        (attack.folder / name).unlink(missing_ok=True)
        os.mkfifo(attack.folder / name)

    return change


def custom_component(attack: Attack) -> None:
    attack.index(unet=["diffusers", "X"])
    attack.write("unet/diffusers.py")


def custom_pipeline(attack: Attack) -> None:
    attack.index(_class_name=["pipeline", "X"])
    attack.write("pipeline.py")


MODULES = {
    "of the path": "canary_module",
    "of the standard library": "os",
    "of a submodule": "diffusers.utils",
    "of this package": "cubediff.train",
    "of a relative module": ".canary_module",
    "of diffusers' pipelines": "stable_diffusion",
    "that is empty": "",
}
ATTACKS: dict[str, Callable[[Attack], None]] = {
    **{
        f"{part}: a class {what}": (lambda attack, part=part, name=name: attack.index(**{part: [name, "X"]}))
        for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
        for what, name in MODULES.items()
    },
    **{
        f"a component {value!r}": (lambda attack, value=value: attack.index(vae=value))
        for value in ("canary_module", ["canary_module"], [1, 2], ["diffusers", None], {"diffusers": "X"}, 3, True)
    },
    **{
        f"the class {library}.{name}": (lambda attack, pair=(library, name): attack.index(unet=list(pair)))
        for library, name in (
            ("diffusers", "DiffusionPipeline"),
            ("diffusers", "StableDiffusionPipeline"),
            ("diffusers", "AutoModel"),
            ("diffusers", "OnnxRuntimeModel"),
            ("diffusers", "__doc__"),
            ("diffusers", "utils"),
            ("transformers", "AutoModel"),
            ("transformers", "AutoTokenizer"),
            ("transformers", "pipeline"),
            ("transformers", "no such class"),
        )
    },
    "a pipeline inside": nested_pipeline,
    "a custom component": custom_component,
    "a custom pipeline": custom_pipeline,
    **{f"pickles only, .{suffix}": pickles_only(suffix) for suffix in ("bin", "pt", "pth", "ckpt", "pkl")},
    "a sharded pickle": sharded_pickle,
    "an adapter": lambda attack: attack.write("text_encoder/adapter_config.json", "{}"),
    "code of the Hub": lambda attack: attack.json("text_encoder/config.json", attn_implementation="evil/kernel"),
    "timesteps": lambda attack: attack.json("scheduler/scheduler_config.json", num_train_timesteps=10**12),
    "positions": lambda attack: attack.json("text_encoder/config.json", max_position_embeddings=10**11),
    "FIFO config": fifo("unet/config.json"),
    "FIFO weights": fifo("unet/diffusion_pytorch_model.safetensors"),
    "FIFO index": fifo("model_index.json"),
    "no JSON": lambda attack: attack.write("unet/config.json", b"\xff{"),
    "nested JSON": lambda attack: attack.write("unet/config.json", b"[" * 100_000),
    "another JSON": lambda attack: attack.write("unet/config.json", b"[]"),
    "an index that is a list": lambda attack: attack.write("model_index.json", b"[]"),
}


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("load", [CubeDiffPipeline.from_pretrained, CubeDiffPipeline.from_2d], ids=["trained", "2d"])
def test_an_attack_is_refused_and_runs_no_code(kind: str, load: Callable[[Path], Any], attack: Attack) -> None:
    ATTACKS[kind](attack)
    modules = {*sys.modules}
    with pytest.raises((ValueError, FileNotFoundError), match=r"model_index\.json|/export/"):
        load(attack.folder)
    assert not attack.canary.exists()
    assert "canary_module" not in {*sys.modules} - modules


@pytest.mark.parametrize("load", [load_pipeline, load_for_generation, pipeline_class], ids=lambda load: load.__name__)
def test_every_way_to_a_folder_is_checked(load: Callable[[Path], Any], attack: Attack) -> None:
    attack.index(vae=["canary_module", "X"], _class_name=["canary_module", "X"])
    if load is pipeline_class:
        assert load(attack.folder) is None
    else:
        with pytest.raises(ValueError, match=r"model_index\.json"):
            load(attack.folder)
    assert not attack.canary.exists()


@pytest.mark.parametrize("load", [CubeDiffPipeline.from_pretrained, CubeDiffPipeline.from_2d], ids=["trained", "2d"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["tokenizer.json", "tokenizer_config.json"],
            "tokenizer holds neither tokenizer.json nor vocab.json and merges",
        ),
        (["tokenizer.json"], "tokenizer holds neither tokenizer.json nor vocab.json and merges.txt"),
        (["tokenizer_config.json"], "tokenizer holds no tokenizer_config.json"),
    ],
)
def test_a_tokenizer_that_lacks_files_is_refused(
    names: list[str], message: str, load: Callable[[Path], Any], attack: Attack
) -> None:
    for name in names:
        (attack.folder / "tokenizer" / name).unlink()
    with pytest.raises(ValueError, match=f"{re.escape(message)}.*: copy or export the model again$"):
        load(attack.folder)


def test_code_that_nothing_names_does_not_run(attack: Attack) -> None:
    """`auto_map` and modules in the folder are ignored; pickles next to safetensors are not read."""
    for part, name in {"text_encoder": "config", "tokenizer": "tokenizer_config", "unet": "config"}.items():
        attack.json(f"{part}/{name}.json", auto_map={"AutoModel": "evil.X", "AutoTokenizer": ["evil.X", "evil.X"]})
        attack.write(f"{part}/evil.py")
    attack.write("evil.py")
    attack.index(evil=["canary_module", "X"])
    attack.pickle("unet/diffusion_pytorch_model.bin")
    attack.pickle("text_encoder/pytorch_model.bin")
    CubeDiffPipeline.from_pretrained(attack.folder)
    assert not attack.canary.exists()


def test_trust_remote_code_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="a model folder brings no code"):
        CubeDiffPipeline.from_pretrained(model, trust_remote_code=True)


# ---- controls: the same attacks win without the checks ----------------------------------------------------------


@pytest.fixture
def unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, pipeline_module):
        monkeypatch.setattr(module, "check_components", lambda *_: None)
    # diffusers 0.41 imported any module; later releases import only those that are known or imported already.
    monkeypatch.setattr("diffusers.pipelines.pipeline_loading_utils._get_library_or_raise", import_module)


@pytest.mark.parametrize("kind", ["vae: a class of the path", "a pipeline inside"])
def test_control_a_module_of_the_path_runs(kind: str, attack: Attack, unprotected: None) -> None:
    ATTACKS[kind](attack)
    with pytest.raises(Exception, match=r"."):
        CubeDiffPipeline.from_pretrained(attack.folder)
    assert attack.canary.exists()


def test_control_a_pickle_runs(attack: Attack) -> None:
    pickles_only("bin")(attack)
    torch.load(attack.folder / "unet" / "diffusion_pytorch_model.bin", weights_only=False)
    assert attack.canary.exists()


def test_control_an_undamaged_copy_is_loaded(attack: Attack) -> None:
    assert isinstance(CubeDiffPipeline.from_pretrained(attack.folder), CubeDiffPipeline)
    trust.check_components(attack.folder, ("vae", "unet"))
