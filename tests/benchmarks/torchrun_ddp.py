"""The peer of `train.py` and `start.py`: a plain script, as one would write it for torchrun; alone without a group.

The same network (built by `models.network`), the same batch and threads; fp32, NCHW, data in memory.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from models.config import ResolvedTechniques
from models.features import Signature
from models.network import build
from orchestrator.config import Experiment


def main() -> None:
    """Train for the experiment's epochs; the first worker prints when it took its first step, and its speed."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    experiment = Experiment.model_validate(plan["experiment"])
    torch.set_num_threads(1)
    in_group = "RANK" in os.environ
    if in_group:
        dist.init_process_group("gloo")
    rank, workers = (dist.get_rank(), dist.get_world_size()) if in_group else (0, 1)
    images = torch.from_numpy(np.load(plan["images"], mmap_mode="c"))
    labels = torch.from_numpy(np.load(plan["labels"]))
    techniques = ResolvedTechniques.model_validate(plan["techniques"])
    network = build(experiment.model, techniques, Signature.model_validate(plan["signature"]), seed=0)
    parallel = DistributedDataParallel(network) if in_group else network
    optimizer = torch.optim.SGD(parallel.parameters(), lr=experiment.train.learning_rate, momentum=0.9, nesterov=True)
    each = experiment.train.batch_size // workers
    first_step_at, speed = 0.0, 0.0
    for epoch in range(experiment.train.epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))[rank::workers]
        started, samples = time.perf_counter(), 0
        for step, index in enumerate(order.split(each)):
            network.begin_batch(len(index), seed=0, epoch=epoch, step=step, logical_worker=rank)
            loss = torch.nn.functional.cross_entropy(parallel({"image": images[index]}), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            first_step_at = first_step_at or time.time()
            samples += len(index) * workers
        speed = samples / (time.perf_counter() - started)
    if rank == 0:
        print(json.dumps({"first_step_at": first_step_at, "samples_per_s": speed}))
    if in_group:
        dist.destroy_process_group()


main()
