r"""A loss weighting: P2 (arXiv 2204.00227), which lowers the weight of timesteps with little noise.

`examples/conf/objective/p2.yaml` makes it a choice of the group `objective`. From the repository's folder:

    cubediff prepare data/samples experiments/runs/shards --captions data/samples/captions.jsonl
    PYTHONPATH=examples cubediff train --config-dir examples/conf objective=p2 model.objective.weighting.gamma=0.5 \
        experiment=tiny_cpu model=tiny_random trainer.max_steps=4 \
        data.path=experiments/runs/shards run_dir=experiments/runs/p2
"""

from dataclasses import dataclass

from torch import Tensor

from cubediff.diffusion.processes import NoisingProcess


@dataclass(frozen=True)
class P2:
    """Multiplies the loss of a panorama by 1 / (k + SNR)^gamma.

    Args:
        gamma: Strength; 0 leaves the losses as they are.
        k: Bounds the weight of timesteps with much noise.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __call__(self, losses: Tensor, timesteps: Tensor, process: NoisingProcess) -> Tensor:
        """Losses (B,) and timesteps (B,) of B panoramas to weighted losses (B,)."""
        return losses / (self.k + process.snr(timesteps)) ** self.gamma
