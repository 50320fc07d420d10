"""Single-file checkpoints in the original layout: the models are those of the folder; other files are refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors.torch import load_file, save_file
from support.awake import awaken_
from support.ldm import TEXT, UNET, VAE, single_file_weights, write_single_file
from support.stock import stock_2d
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from cubediff.models.presets import SD15 as SD15_CONFIGS
from cubediff.models.presets import SD21 as SD21_CONFIGS
from cubediff.models.presets import ModelConfigs
from cubediff.models.single_file import SD15, SingleFile

Weights = dict[str, Tensor]
CONV_IN = f"{UNET}input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def stock() -> StableDiffusionPipeline:
    return stock_2d()


@pytest.fixture(scope="module")
def folder(stock: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stock")
    stock.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def weights(stock: StableDiffusionPipeline) -> Weights:
    return single_file_weights(stock)


def equal(model: nn.Module, reference: nn.Module) -> bool:
    ours, theirs = model.state_dict(), reference.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("open_clip", [False, True], ids=["1.x", "2.x"])
def test_every_weight_is_that_of_the_folder(
    stock: StableDiffusionPipeline, folder: Path, tmp_path: Path, open_clip: bool
) -> None:
    file = write_single_file(stock, tmp_path / "sd.safetensors", open_clip)
    loaded = SingleFile(file).load(folder, torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        assert equal(loaded[part], getattr(stock, part)), part
        assert not loaded[part].training
    assert loaded["tokenizer"].get_vocab() == stock.tokenizer.get_vocab()


@pytest.mark.parametrize(("configs", "open_clip"), [(SD15_CONFIGS, False), (SD21_CONFIGS, True)], ids=["1.5", "2.1"])
def test_all_layers_of_the_public_models_are_found(
    stock: StableDiffusionPipeline, tmp_path: Path, configs: ModelConfigs, open_clip: bool
) -> None:
    """As many blocks and layers as they have, with few channels; 2.x files hold a layer of the text encoder more."""
    heads = 2 if isinstance(configs["unet"]["attention_head_dim"], int) else (2, 4, 8, 8)
    unet = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32, "attention_head_dim": heads}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 300}
    public = StableDiffusionPipeline(
        unet=awaken_(UNet2DConditionModel.from_config(configs["unet"] | unet)),
        vae=awaken_(AutoencoderKL.from_config(configs["vae"] | {"block_out_channels": (32, 32, 64, 64)})),
        text_encoder=awaken_(CLIPTextModel(CLIPTextConfig(**configs["text_encoder"] | text))),
        tokenizer=stock.tokenizer,
        scheduler=stock.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    public.save_pretrained(tmp_path / "folder")
    weights = single_file_weights(public, open_clip)
    last = {
        name.replace("resblocks.22", "resblocks.23"): value + 1 for name, value in weights.items() if ".22." in name
    }
    assert bool(last) == open_clip
    save_file({**last, **weights}, tmp_path / "sd.safetensors")
    loaded = SingleFile(tmp_path / "sd.safetensors").load(tmp_path / "folder", torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        assert equal(loaded[part], getattr(public, part)), part


def test_diffusers_reads_the_file_that_the_tests_write(
    stock: StableDiffusionPipeline, folder: Path, tmp_path: Path
) -> None:
    file = write_single_file(stock, tmp_path / "sd.safetensors")
    theirs = StableDiffusionPipeline.from_single_file(str(file), config=str(folder), local_files_only=True)
    assert all(equal(getattr(theirs, part), getattr(stock, part)) for part in ("unet", "vae", "text_encoder"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_dtype_are_loaded_in_the_one_that_is_asked_for(
    stock: StableDiffusionPipeline, folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    file = write_single_file(stock, tmp_path / "sd.safetensors", dtype=dtype)
    loaded = SingleFile(file).load(folder, torch.float32)
    name = "mid_block.resnets.0.conv1.weight"
    assert torch.equal(loaded["unet"].state_dict()[name], stock.unet.state_dict()[name].to(dtype).float())
    assert {value.dtype for part in ("unet", "vae", "text_encoder") for value in loaded[part].parameters()} == {
        torch.float32
    }


def test_raw_weights_are_taken_where_the_file_holds_an_ema_too(
    stock: StableDiffusionPipeline, folder: Path, tmp_path: Path, weights: Weights
) -> None:
    ema = {"model_ema." + n.removeprefix("model.").replace(".", ""): v + 1 for n, v in weights.items() if UNET in n}
    others = {"model_ema.decay": torch.tensor(0.9999), "betas": torch.ones(1000), f"{VAE}loss.logvar": torch.zeros(1)}
    save_file({**weights, **ema, **others}, tmp_path / "pruned.safetensors")
    loaded = SingleFile(tmp_path / "pruned.safetensors").load(folder, torch.float32)
    assert equal(loaded["unet"], stock.unet)


def test_the_default_configs_are_those_that_diffusers_takes(
    weights: Weights, stock: StableDiffusionPipeline, tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "one.safetensors")
    assert SingleFile(tmp_path / "one.safetensors").default_configs == SD15
    assert fetch_diffusers_config(weights)["pretrained_model_name_or_path"] == SD15
    two = SingleFile(write_single_file(stock, tmp_path / "two.safetensors", open_clip=True))
    with pytest.raises(ValueError, match=r"two\.safetensors holds Stable Diffusion 2\.x, and not .* set config=FOLDER"):
        _ = two.default_configs


# ---- other files ---------------------------------------------------------------------------------------------------


def without(*prefixes: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value for name, value in weights.items() if not name.startswith(prefixes)}


def only(*prefixes: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value for name, value in weights.items() if name.startswith(prefixes)}


def with_inputs(channels: int) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, CONV_IN: torch.zeros(len(weights[CONV_IN]), channels, 3, 3)}


def named(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: torch.zeros(4, 4) for name in names}


def beside(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, **{name: torch.zeros(4, 4) for name in names}}


def quantized(dtype: torch.dtype) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value.to(dtype) for name, value in weights.items()}


def without_prefix(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}


OTHERS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "LoRA of sd-scripts": (named("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"), "holds LoRA weights"),
    "LoRA of peft": (named("unet.mid_block.attentions.0.to_q.lora_A.weight"), "holds LoRA weights"),
    "LoRA of diffusers": (named("down_blocks.0.attn1.processor.to_q_lora.down.weight"), "holds LoRA weights"),
    "LyCORIS": (named("lycoris_unet_mid_block.hada_w1_a"), "holds LoRA weights"),
    "ControlNet": (named("control_model.time_embed.0.weight"), "holds a ControlNet"),
    "ControlNet with its base": (beside("control_model.time_embed.0.weight"), "holds a ControlNet"),
    "ControlNet of diffusers": (named("controlnet_cond_embedding.conv_in.weight"), "holds a ControlNet"),
    "SDXL": (beside("conditioner.embedders.0.transformer.text_model.x.weight"), "holds Stable Diffusion XL"),
    "SDXL's UNet": (beside(f"{UNET}label_emb.0.0.weight"), r"holds a UNet with conditions besides text \(label_emb\)"),
    "SD 3": (named(f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias"), "holds a diffusion transformer"),
    "Flux": (named("double_blocks.0.img_attn.norm.key_norm.scale"), "holds a diffusion transformer"),
    "VAE": (without_prefix(VAE), "holds a VAE alone"),
    "VAE with its prefix": (only(VAE), r"has no UNet \(.*\) and no text encoder"),
    "UNet": (only(UNET), r"has no VAE \(first_stage_model\.…\) and no text encoder"),
    "UNet of diffusers": (named("down_blocks.0.resnets.0.conv1.weight"), "holds a UNet alone.*model_index.json"),
    "text encoder": (named("text_model.embeddings.token_embedding.weight"), "holds a text encoder alone"),
    "no text encoder": (without(TEXT), r"has no text encoder \(cond_stage_model\."),
    "no VAE": (without(VAE), r"has no VAE \(first_stage_model\.…\): expected a complete checkpoint"),
    "textual inversion": (named("emb_params"), "has no UNet .* and no VAE .* and no text encoder"),
    "nothing": (named(), "has no UNet"),
    "inpainting": (with_inputs(9), "expected a UNet with 4 input channels.*got 9 for inpainting: use a base model"),
    "InstructPix2Pix": (with_inputs(8), ".*got 8 for editing by instructions"),
    "upscaler or CubeDiff": (with_inputs(7), ".*got 7: use a base model"),
    "fp8": (quantized(torch.float8_e4m3fn), ".*has the dtype F8_E4M3: expected float16, bfloat16 or float32"),
    "int8": (quantized(torch.int8), ".*has the dtype I8: expected float16"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_file_is_refused_by_its_name(weights: Weights, tmp_path: Path, kind: str) -> None:
    change, message = OTHERS[kind]
    save_file(change(weights), tmp_path / "a file.safetensors")
    with pytest.raises(ValueError, match=rf"a file\.safetensors:? {message}"):
        SingleFile(tmp_path / "a file.safetensors")


def test_damaged_files_are_refused_by_their_name(weights: Weights, tmp_path: Path) -> None:
    file = tmp_path / "sd.safetensors"
    save_file(weights, file)
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n"
    for content in (b"", whole[:7], whole[:1000], whole[:-1], b"\0" * len(whole), b"<!DOCTYPE html>", pointer):
        file.write_bytes(content)
        with pytest.raises(OSError, match=r"sd\.safetensors is incomplete or damaged \(.*\): copy the file again"):
            SingleFile(file)


def test_a_file_that_does_not_exist_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"models/sd\.safetensors: no such file"):
        SingleFile("models/sd.safetensors")
    with pytest.raises(ValueError, match="expected a file on this machine, got a URL: download the file first"):
        SingleFile("https://huggingface.co/someone/model/resolve/main/sd.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth", ".zip", ""])
def test_files_of_other_types_are_refused_with_what_to_do(weights: Weights, tmp_path: Path, suffix: str) -> None:
    """The command in the message converts a pickle, here one as Lightning nests it."""
    file = tmp_path / f"a model{suffix}"
    torch.save({"state_dict": weights, "global_step": 3}, file)
    with pytest.raises(ValueError, match=r"expected a \.safetensors file; others may be pickled") as raised:
        SingleFile(file)
    if suffix == ".ckpt":
        command = str(raised.value).partition("\n")[2].replace("python", sys.executable, 1)
        subprocess.run(command, shell=True, check=True)
        converted = load_file(tmp_path / "a model.safetensors")
        assert converted.keys() == weights.keys()
        assert torch.equal(converted[CONV_IN], weights[CONV_IN])


# ---- configs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "name", "problem"),
    [
        ("unet", f"{UNET}time_embed.0.weight", r"missing, .*: time_embedding\.linear_1\.weight"),
        ("unet", f"{UNET}input_blocks.2.0.op.bias", r"missing, .*: down_blocks\.0\.downsamplers\.0\.conv\.bias"),
        ("unet", f"{UNET}output_blocks.1.1.conv.bias", r"not converted: 'output_blocks\.1\.1\.conv\.bias'"),
        ("vae", f"{VAE}encoder.down.0.downsample.conv.bias", r"missing, .*: encoder\.down_blocks\.0\.downsamplers.*"),
        ("vae", f"{VAE}quant_conv.bias", r"missing, .*: quant_conv\.bias"),
        ("text_encoder", f"{TEXT}transformer.text_model.final_layer_norm.bias", r"missing: .*final_layer_norm\.bias"),
    ],
)
def test_a_file_without_a_weight_is_refused(
    folder: Path, tmp_path: Path, weights: Weights, part: str, name: str, problem: str
) -> None:
    save_file(without(name)(weights), tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=rf"part\.safetensors does not fit .*/{part}/config\.json \({problem}\)"):
        SingleFile(tmp_path / "part.safetensors").load(folder, torch.float32)


@pytest.mark.slow
def test_a_file_without_any_one_weight_or_of_another_shape_is_refused(
    folder: Path, tmp_path: Path, weights: Weights
) -> None:
    file = tmp_path / "part.safetensors"
    for name in weights:
        for changed in (without(name)(weights), {**weights, name: torch.tensor(0.0)}, beside(name)(weights)):
            if not name.endswith("position_ids"):
                save_file(changed, file)
                with pytest.raises(ValueError, match=r"part\.safetensors"):
                    SingleFile(file).load(folder, torch.float32)


@pytest.mark.parametrize("name", ["input_blocks.1.2.temporal.weight", "input_blocks.9.0.op.weight"])
def test_a_unet_with_more_layers_is_refused(folder: Path, tmp_path: Path, weights: Weights, name: str) -> None:
    save_file(beside(f"{UNET}{name}")(weights), tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"more\.safetensors does not fit .*/unet/config\.json \(missing, unexpected"):
        SingleFile(tmp_path / "more.safetensors").load(folder, torch.float32)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"cross_attention_dim": 64}),
        ("unet", {"block_out_channels": [8, 16]}),
        ("unet", {"down_block_types": ["DownBlock2D", "DownBlock2D"]}),
        ("unet", {"layers_per_block": 2}),
        ("unet", {"in_channels": 9}),
        ("vae", {"layers_per_block": 2}),
        ("vae", {"latent_channels": 8}),
        ("vae", {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
                 "block_out_channels": [8]}),
        ("text_encoder", {"hidden_size": 64}),
        ("text_encoder", {"num_hidden_layers": 2}),
        ("text_encoder", {"vocab_size": 49408}),
    ],
)  # fmt: skip
def test_configs_of_another_model_are_refused(
    folder: Path, tmp_path: Path, weights: Weights, part: str, change: dict[str, object]
) -> None:

    shutil.copytree(folder, tmp_path / "configs")
    config = tmp_path / "configs" / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    save_file(weights, tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match=rf"sd\.safetensors does not fit .*/{part}/config\.json \(.+\): set config="):
        SingleFile(tmp_path / "sd.safetensors").load(tmp_path / "configs", torch.float32)


@pytest.mark.parametrize(
    ("metadata", "more", "stated"),
    [
        ({}, (), None),
        ({"modelspec.prediction_type": "epsilon"}, (), "epsilon"),
        ({"modelspec.prediction_type": "v"}, (), "v_prediction"),
        ({}, ("v_pred",), "v_prediction"),
        ({"modelspec.prediction_type": "of another specification"}, (), None),
    ],
)
def test_a_stated_prediction_type_must_be_that_of_the_configs(
    weights: Weights, tmp_path: Path, metadata: dict[str, str], more: tuple[str, ...], stated: str | None
) -> None:
    save_file(beside(*more)(weights), tmp_path / "sd.safetensors", metadata)
    file = SingleFile(tmp_path / "sd.safetensors")
    for configured in ("epsilon", "v_prediction"):
        if stated in (None, configured):
            file.check_prediction_type(configured)
            continue
        with pytest.raises(ValueError, match=f"states the prediction type {stated}, but its configs have {configured}"):
            file.check_prediction_type(configured)
