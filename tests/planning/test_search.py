"""The search for the largest batch and for the fastest way to take a step."""

from dataclasses import replace
from functools import lru_cache

import pytest
from support.runs import composed
from support.step_memory import TINY

from cubediff.planning.cost import Parallelism, cost
from cubediff.planning.gpus import GIB, GPUS
from cubediff.planning.search import largest_batch, step_seconds, ways

FOUR = ("model=tiny_random", "data.path=SHARDS", "trainer=ddp", "data.batch_size=1")


@pytest.mark.slow
def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    config = composed(*TINY, "model.trainable=full")
    counted = lru_cache(lambda batch: cost(config, batch))  # each is asked for several times
    little = 0.02 * (counted(2).peak - counted(1).peak)
    for batch in (1, 5):
        memory = counted(batch).peak
        assert largest_batch(lambda each: float(counted(each).peak), memory + little) == batch
        assert largest_batch(lambda each: float(counted(each).peak), memory - little) == batch - 1


@pytest.mark.parametrize(
    "lines", [[(3, 1)], [(8, 0.9), (7.7, 1.6)], [(1, 0.1), (0, 1), (-40, 8)], [(50, 0.01), (0, 4)], [(9, 0), (0, 2)]]
)
def test_the_largest_batch_is_found_by_a_few_counts(lines: list[tuple[float, float]]) -> None:
    """The peak is a maximum of lines; the largest batch that fits is found by trying each."""
    counted: list[int] = []

    def peak(batch: int) -> float:
        return max(fixed + batch * each for fixed, each in lines)

    def counts(batch: int) -> float:
        counted.append(batch)
        return peak(batch)

    for memory in [peak(batch) + more for batch in range(1, 16) for more in (0.0, 0.001, -1e-8)]:
        expected = max(batch for batch in range(17) if batch == 0 or peak(batch) <= memory)
        for limit in (3, 100):
            counted.clear()
            if expected < 16:
                assert largest_batch(counts, memory, limit) == min(expected, limit)
                assert len(counted) == len(set(counted)) <= 7  # 1, 2, 16, and a bisection between
                assert max(counted) <= max(limit, 2)


@pytest.mark.slow
def test_the_ways_take_the_same_step_and_the_fastest_comes_first() -> None:
    config = composed(*FOUR, "trainer.accumulate_grad_batches=2")
    roomy = ways(config, GPUS["L4"], 20 * GIB)
    assert {(way.strategy, way.gradient_checkpointing) for way in roomy} == {
        (strategy, checkpointing) for strategy in ("ddp", "fsdp") for checkpointing in (False, "selective", True)
    }
    assert all(way.batch * way.accumulate == 2 and way.peak <= 20 * GIB for way in roomy)
    assert all(way.batch == 2 for way in roomy)
    assert (roomy[0].strategy, roomy[0].gradient_checkpointing) == ("ddp", False)
    assert roomy[0].overrides == (
        "data.batch_size=2 trainer.accumulate_grad_batches=1 model.gradient_checkpointing=false trainer=ddp"
    )
    planned = cost(composed(*FOUR, *roomy[0].overrides.split()), 2)
    assert roomy[0].peak == planned.peak
    seconds = step_seconds(planned, Parallelism(4, 1, keeps_gradients=True), 1, GPUS["L4"], config)
    assert roomy[0].seconds == pytest.approx(sum(seconds.values()))
    little = roomy[0].peak - 1
    assert all(way.peak <= little for way in ways(config, GPUS["L4"], little))


def test_sharding_copies_weights_twice_and_gradients_once_in_each_micro_batch() -> None:
    """DDP copies none of them: its buckets are the gradients."""
    config, gpu = composed(*FOUR, "trainer.precision=bf16-mixed", "model.trainable=full"), GPUS["L4"]
    counted = cost(config, 1)
    copied = 2 * counted.exported / 2 + counted.gradients  # weights in bf16
    seconds = [
        step_seconds(each, Parallelism(4, shards, keeps_gradients=True), 3, gpu, config)["copy"]
        for each, shards in ((counted, 1), (replace(counted, gradients=counted.gradients // 4), 4))
    ]
    assert seconds[1] - seconds[0] == pytest.approx(3 * 2 * copied / (gpu.bandwidth * 0.75), rel=1e-4)


@pytest.mark.slow
def test_lora_is_not_sharded() -> None:
    config = composed(*FOUR, "model.trainable=lora")
    assert {way.strategy for way in ways(config, GPUS["A100-80"], 70 * GIB)} == {"ddp"}
