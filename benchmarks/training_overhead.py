"""Measure what a step of `edgekit train` adds to the same operations in a bare loop of torch.

    python benchmarks/training_overhead.py [--data fashion-mnist] [--model convnet] [--blocks 20] [--steps 10]

Both loops are in one process and take turns, step by step, each with a copy of the network. The bare one looks up the
same images, changes them by the same code, and makes forward, loss, backward, optimizer and schedule by torch alone.
The rest is what the tool adds: Fabric, metrics, the check of the loss, progress. Time is the process's CPU time on one
thread: these steps wait for nothing, and another process on the same core does not count.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import count

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from edgekit.deploy.environment import describe
from edgekit.deploy.progress import silent
from edgekit.toolkit.analysis.statistics import student_mean
from edgekit.toolkit.training.fit import Meter
from edgekit.toolkit.training.recipe import for_model
from edgekit.toolkit.training.setup import Run, open_data, open_fabric, prepare, start_trial
from edgekit.toolkit.training.sharding import divided
from edgekit.toolkit.training.step import train_steps
from torch.nn import functional as F  # noqa: N812 # torch's own abbreviation


def _edgekit(run: Run) -> Iterator[None]:
    """The steps of `edgekit train`."""
    for epoch in count():
        meter = Meter(run, epoch)
        for step in train_steps(run, epoch):
            meter.add(step)
            yield


def _bare(run: Run) -> Iterator[None]:
    """The same operations, by torch alone."""
    network, optimizer, schedule = run.plain, run.optimizer.optimizer, run.scheduler
    images, pixels = len(run.data.dataset.train), run.data.pixels["train"]
    total = torch.zeros(())
    for epoch in count():
        network.train()
        generator = np.random.default_rng(epoch)
        plan = divided(generator.permutation(images), run.settings.batch_size)
        draw = run.augmentation.draw(images, epoch, torch.device("cpu"))
        for batch in pixels.batches(plan, epoch):
            changed = run.augmentation(batch.pixels, draw.of(batch.indices))
            loss = F.cross_entropy(network(changed.contiguous(memory_format=torch.channels_last)), batch.targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            total += loss.detach()
            yield


def _block(loops: list[Iterator[None]], steps: int, first: int) -> list[float]:
    """CPU seconds of each loop in a block; they take turns, and so does the one that begins."""
    seconds = [0.0, 0.0]
    for step in range(steps):
        for index in ((first + step) % 2, (first + step + 1) % 2):
            begun = time.process_time()
            next(loops[index])
            seconds[index] += time.process_time() - begun
    return seconds


def main() -> None:
    """Print milliseconds per step of both, and the share that EdgeKit adds with its 95 % interval over the blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    print(json.dumps(describe()), file=sys.stderr)
    recipe = for_model(arguments.model).changed([f"data.data={arguments.data}", "train.device=cpu"])
    fabric = open_fabric(recipe)
    prepared = prepare(fabric, recipe)
    data = open_data(prepared, recipe, fabric.device, silent)
    loops = [_edgekit(start_trial(recipe, prepared, data)), _bare(start_trial(recipe, prepared, data))]
    _block(loops, 3, 0)  # warm up
    blocks = [_block(loops, arguments.steps, number) for number in range(arguments.blocks)]
    tool, bare = (sum(block[index] for block in blocks) / len(blocks) / arguments.steps * 1e3 for index in (0, 1))
    added = student_mean([block[0] / block[1] - 1 for block in blocks])
    print(f"{arguments.model} on {arguments.data}: EdgeKit {tool:.3f} ms, bare {bare:.3f} ms per step; "
          f"added {added.value:+.2%} [{added.low:+.2%}, {added.high:+.2%}]")  # fmt: skip


if __name__ == "__main__":
    main()
