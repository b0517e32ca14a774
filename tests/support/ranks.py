"""Runs in several processes, for the tests: what each of them does, as a module that a new process can import."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from recbole_onebp.distributed.launch import free_port
from support.fresh import START_METHOD


def in_ranks(world: int, local_world: int, runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    """Train the runs one after the other, in ``world`` processes; hosts are groups of ``local_world`` of them.

    Args:
        runs: for each name, the data set and the configuration.
    """
    mp.start_processes(_train, (world, local_world, free_port(), runs), nprocs=world, start_method=START_METHOD)


def _train(rank: int, world: int, local_world: int, port: int, runs: dict[str, tuple[str, dict[str, Any]]]) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank % local_world, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local_world}
    os.environ.update({key: str(value) for key, value in own.items()})
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    import recbole_onebp
    from recbole_onebp import engine, trainer
    from recbole_onebp.distributed.ranks import current
    from recbole_onebp.engine.cuda import DeviceEngine

    for name, (dataset, config) in runs.items():
        if name.startswith("device"):  # CUDA's engine, on the CPU
            trainer.make_engine = lambda *parts: DeviceEngine(*parts, current())
        else:
            trainer.make_engine = engine.make_engine
        run = recbole_onebp.build("OneBP", dataset, config_dict=config)
        result = run.fit()
        seen = {"valid": result.valid, "test": result.test, "user_rows": len(run.model.user_table)}
        seen |= {"losses": [epoch["train_loss"] for epoch in run.trainer.record.epochs]}
        seen |= {"n_train": result.n_train, "parameters": result.parameters, "stats": run.trainer.encoding_stats}
        Path(config["output_dir"], f"{name}-{rank}.json").write_text(json.dumps(seen))
