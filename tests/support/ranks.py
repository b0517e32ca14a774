"""Runs in several processes, for the tests: what each of them does, as a module that a new process can import."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import traceback
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numba
import torch
import torch.multiprocessing as mp

from recbole_onebp.distributed.launch import free_port
from support.fresh import START_METHOD

Runs = dict[str, tuple[str, dict[str, Any]]]
"""For each name the data set and the configuration."""


class InRanks:
    """Trains in several processes, which are forks of one that has imported RecBole: the import takes seconds.

    Nothing has run in that process, so it has no threads, and a fork of it is as good as a new process.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context(START_METHOD)
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,))
        self._process.start()
        other.close()  # only the process has it now, so that its end is seen here

    def __enter__(self) -> InRanks:
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._connection.close()
        self._process.join()

    def __call__(self, world: int, local_world: int, runs: Runs) -> None:
        """Train the runs one after the other, in ``world`` processes; hosts are groups of ``local_world`` of them."""
        self._connection.send((world, local_world, runs))
        failure = self._connection.recv()
        assert not failure, failure


def _serve(connection: Connection) -> None:
    for name in ("recbole_onebp.trainer", "recbole_onebp.run.build", "recbole.quick_start", "torch._dynamo"):
        import_module(name)  # torch imports the last when an optimizer is made
    os.environ["NUMBA_NUM_THREADS"] = "1"  # with numba's first loop, torch would use as many threads as there are cores
    numba.config.reload_config()
    vars(import_module("recbole_onebp.engine.adam"))["ROWS_A_PLACE"] = 0  # rows miss steps as those of large tables do

    while True:
        try:
            world, local_world, runs = connection.recv()
        except EOFError:
            return
        failure = ""
        try:
            arguments = (world, local_world, free_port(), runs)
            mp.start_processes(_train, arguments, nprocs=world, start_method="fork")
        except Exception:
            failure = traceback.format_exc()
        connection.send(failure)


def _make(engine: Any, *parts: Any) -> Any:
    from recbole_onebp.distributed.ranks import current

    return engine(*(part for part in parts if part is not None), current())


def _train(rank: int, world: int, local_world: int, port: int, runs: Runs) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank % local_world, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local_world}
    os.environ.update({key: str(value) for key, value in own.items()})
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    import recbole_onebp
    from recbole_onebp import engine, trainer
    from recbole_onebp.engine.cuda import DeviceEngine
    from recbole_onebp.engine.cuda_tower import DeviceTowerEngine
    from recbole_onebp.run.folder import RunFolder

    RunFolder.draw_curves = lambda *_: None  # a picture takes longer than a run
    for name, (dataset, config) in runs.items():
        if name.startswith("device"):  # CUDA's engine, on the CPU
            engine_on_cuda = DeviceTowerEngine if config.get("item_features") else DeviceEngine
            trainer.make_engine = partial(_make, engine_on_cuda)
        else:
            trainer.make_engine = engine.make_engine
        run = recbole_onebp.build("OneBP", dataset, config_dict=config)
        result = run.fit()
        seen = {"valid": result.valid, "test": result.test, "user_rows": len(run.model.user_table)}
        seen |= {"losses": [epoch["train_loss"] for epoch in run.trainer.record.epochs]}
        seen |= {
            "test_among": result.test_among,
            "test_by_train_pairs": result.test_by_train_pairs,
            "n_train": result.n_train,
            "parameters": result.parameters,
            "stats": run.trainer.encoding_stats,
        }
        Path(config["output_dir"], f"{name}-{rank}.json").write_text(json.dumps(seen))
