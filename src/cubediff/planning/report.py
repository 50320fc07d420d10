"""The plan as text."""

from omegaconf import DictConfig

from cubediff.configs import build
from cubediff.planning.cost import CUDA_RESERVE, GIB, cost, devices, largest_batch
from cubediff.planning.gpus import GPUS


def report(config: DictConfig) -> str:
    """The plan as text."""
    trainer, batch = config.trainer, config.data.batch_size
    number = devices(config)
    memory = config.plan.memory_gb * GIB
    made = cost(config, batch)
    step_panoramas = batch * number * trainer.accumulate_grad_batches
    flops = made.flops * trainer.accumulate_grad_batches
    lines = [
        f"{config.name}: {number} × {batch} panoramas of 6 × {config.face_size}² pixels × "
        f"{trainer.accumulate_grad_batches} micro-batches = {step_panoramas} a step, {trainer.max_steps} steps, "
        f"{trainer.precision}, gradient checkpointing {'on' if config.model.gradient_checkpointing else 'off'}",
        "",
        f"UNet: {made.parameters / 1e6:.1f} M parameters, {made.trained / 1e6:.1f} M of them trained",
        "",
        "memory of a device, GiB",
    ]
    rows = [
        ("UNet weights", made.weights + made.gathered),
        *([("  of which whole at a time", made.gathered)] if made.gathered else []),
        ("VAE and text encoder", made.encoders),
        ("optimizer", made.optimizer),
        ("average of the weights", made.average),
        ("loss, backward, gradients", made.step_peak),
        ("  of which gradients", made.gradients),
        ("encoding the faces", made.encode_peak),
        ("CUDA itself", int(CUDA_RESERVE)),
        ("peak", made.peak),
    ]
    lines += [f"  {name:28s}{value / GIB:8.2f}" for name, value in rows]
    fits, largest = largest_batch(config, memory)
    verdict = "fits" if made.peak <= memory else "does NOT fit"
    lines += [
        f"  {batch} a device {verdict} {memory / GIB:.0f} GiB; the largest batch that does is {fits} "
        f"({largest / GIB:.1f} GiB)",
        "",
        f"compute: {flops * number / 1e12:.1f} TFLOP a step, {made.encode_flops / made.flops:.0%} of it encoding; "
        f"at {config.plan.utilisation:.0%} of the dense bf16 rate",
    ]
    size = _panorama_bytes(config)
    for name, rate in GPUS.items():
        seconds = flops / (rate * config.plan.utilisation)
        per_second = step_panoramas / seconds
        lines.append(
            f"  {number} × {name:5s} {seconds:8.2f} s a step, {per_second:7.2f} panoramas/s, "
            f"{seconds * trainer.max_steps / 3600:8.1f} h, reading {per_second * size / 1e6:6.2f} MB/s"
        )
    lines += ["", f"disk: {made.checkpoint / 1e9:.2f} GB a checkpoint, {made.exported / 1e9:.2f} GB the exported UNet"]
    return "\n".join(lines)


def _panorama_bytes(config: DictConfig) -> float:
    """The mean of the shards, where they are given."""
    if not config.data.path:
        return float(config.plan.panorama_kb) * 1000
    data = build(config.data)
    data.setup()
    return float(data.sample_bytes)
