"""Convolutions that see the neighbouring faces: stock weights, any training mode, no leak between panoramas."""

import copy
import subprocess
import sys

import pytest
import torch
from support.small_unet import TEXT, small_unet
from torch import Tensor, nn

from cubediff.models.inflation import inflate_
from cubediff.models.padding import CubeConv2d, pad_convolutions_
from cubediff.pipelines.loading import load_pipeline, tiny_random


def predict(unet: nn.Module, latents: Tensor) -> Tensor:
    text = torch.zeros(len(latents), 3, TEXT, dtype=latents.dtype)
    return unet(latents, torch.tensor(5), encoder_hidden_states=text, return_dict=False)[0]


def noise(count: int = 6) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_padded_convolution_sees_the_neighbours_and_the_weights_are_the_stock_ones() -> None:
    unet = small_unet()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    plain = predict(inflate_(unet), noise())
    padded = predict(inflate_(unet, conv_padding="faces"), noise())
    kinds = {type(layer) for layer in unet.modules() if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0)}
    assert kinds == {CubeConv2d}
    assert unet.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert (padded - plain).abs().max() > 1e-3
    assert torch.equal(predict(inflate_(unet), noise()), plain)
    assert not any(isinstance(layer, CubeConv2d) for layer in unet.modules())


def test_panoramas_of_a_batch_do_not_mix() -> None:
    unet, latents = inflate_(small_unet(), conv_padding="faces"), noise(12)
    torch.testing.assert_close(predict(unet, latents)[6:], predict(unet, latents[6:]))


def test_a_border_depends_on_the_neighbouring_face_through_a_single_convolution() -> None:
    layer = pad_convolutions_(nn.Conv2d(1, 1, 3, padding=1, bias=False), fov=95.0)
    faces = torch.zeros(6, 1, 16, 16)
    faces[1] = 1  # the right face
    with torch.no_grad():
        layer.weight.fill_(1)
        front = layer(faces)[0, 0]
    assert (front[1:-1, -1] == 3).all()  # the column beyond the border, three rows of it
    assert (front[:, :-2] == 0).all()


def test_recomputed_activations_and_their_gradients_are_the_same() -> None:
    network = inflate_(small_unet(), conv_padding="faces").train()

    def gradients(checkpointing: bool) -> list[Tensor]:
        unet = copy.deepcopy(network)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        predict(unet, noise()).square().mean().backward()
        return [p.grad for p in unet.parameters() if p.grad is not None]

    for one, other in zip(gradients(checkpointing=False), gradients(checkpointing=True), strict=True):
        torch.testing.assert_close(one, other)


def test_the_setting_is_stored_and_a_folder_that_was_trained_otherwise_is_refused(tmp_path) -> None:
    pipeline = tiny_random(conv_padding="faces")
    pipeline.save_pretrained(tmp_path / "model")
    assert load_pipeline(tmp_path / "model").backbone.inflation["conv_padding"] == "faces"
    with pytest.raises(ValueError, match="was trained with conv_padding='faces', not 'zeros'"):
        load_pipeline(tmp_path / "model", conv_padding="zeros")
    with pytest.raises(ValueError, match="conv_padding='copies': use 'zeros' or 'faces'"):
        tiny_random(conv_padding="copies").backbone.inflate_()


COMPILED = """
import torch
from cubediff.models.padding import pad_convolutions_

layer = pad_convolutions_(torch.nn.Conv2d(4, 4, 3, padding=1).double(), fov=95.0)
compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
for count in (6, 12):
    faces = torch.randn(count, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    results = [each(faces) for each in (layer, compiled)]
    gradients = [torch.autograd.grad(result.square().sum(), faces)[0] for result in results]
    for one, other in (results, gradients):
        torch.testing.assert_close(one, other)
"""


@pytest.mark.slow
def test_a_compiled_convolution_is_the_eager_one_in_one_graph() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", COMPILED], check=True)  # shape checks hinder the compiler
