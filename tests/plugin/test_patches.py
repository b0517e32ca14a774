"""Each patch: it is needed where its feature test says so, and what it repairs fails without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole.data.dataset.dataset as dataset_module
import recbole.trainer.trainer as trainer_module
import scipy.sparse as sp
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.utils import ModelType

import recbole_onebp
from conftest import write_inter
from recbole_onebp.plugin import patches
from recbole_onebp.plugin.patches import torch_patches
from support import fresh


def needs(name):
    return pytest.mark.skipif(patches.STATUS[name] == "not needed", reason=f"{name}: not needed on this stack")


def in_a_fresh_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_every_patch_is_applied_or_not_needed():
    assert set(patches.STATUS) == set(patches.PATCHES)
    assert set(patches.STATUS.values()) <= {"applied", "not needed"}


def test_every_patch_says_what_it_is_for():
    for patch in patches.PATCHES.values():
        assert len(patch.why) > 40
        assert patch.issue


def test_applying_twice_changes_nothing():
    def patched():
        return (
            trainer_module.Trainer.__init__,
            trainer_module.torch,
            trainer_module.amp,
            dataset_module.Dataset._fill_nan,
            dataset_module.pd,
            Config.compatibility_settings,
            Config._load_internal_config_dict,
            sys.modules["recbole.quick_start"].load_data_and_model,
        )

    before = patched()
    patches.apply_all()
    wrapped = vars(trainer_module.Trainer)["evaluate"], vars(Config)["_load_internal_config_dict"]
    recbole_onebp.plugin.import_hook.install()
    assert patched() == before
    assert vars(trainer_module.Trainer)["evaluate"] is wrapped[0], "wrapped twice"
    assert vars(Config)["_load_internal_config_dict"] is wrapped[1], "wrapped twice"


def test_a_failing_patch_is_reported_and_not_fatal(monkeypatch):
    def broken():
        raise AttributeError("no such thing")

    patch = patches.Patch("broken", "why", "R#0", needed=lambda: True, apply=broken)
    monkeypatch.setitem(patches.PATCHES, "broken", patch)
    with pytest.warns(UserWarning, match="patch broken failed: AttributeError: no such thing"):
        patches.apply_all()
    assert patches.STATUS.pop("broken").startswith("failed")


@needs("ray_stub")
def test_ray_stub():
    fresh.check(
        "import recbole_onebp, recbole.quick_start, sys; assert 'ray' not in sys.modules, 'a false ray was left'"
    )
    assert fresh.python("import recbole.quick_start").returncode != 0
    tune = sys.modules["recbole.quick_start.quick_start"].tune
    assert tune.report(recall=0.1) is None
    with pytest.raises(ImportError, match=r"ray\.tune\.run needs ray"):
        tune.run()


@needs("numpy_aliases")
def test_numpy_aliases():
    original = fresh.python("from recbole.data.interaction import Interaction; Interaction({'a': [1.0]})")
    assert "AttributeError" in original.stderr
    assert np.float is np.float64
    assert np.zeros(2, dtype=np.bool).dtype == bool
    Config(model="BPR", dataset="ml-100k")


@needs("dok_matrix_update")
def test_dok_matrix_update():
    matrix = sp.dok_matrix((2, 3), dtype=np.float32)
    matrix._update({(0, 1): 1.0, (1, 2): 2.0})
    assert matrix.tocsr().toarray().tolist() == [[0, 1, 0], [0, 0, 2]]
    assert fresh.python("import scipy.sparse as sp; sp.dok_matrix((1, 1))._update({})").returncode != 0


def test_missing_values_are_filled(tmp_path):
    """Under pandas 3 RecBole leaves NaN in float columns, NaN ids in token columns and fails on empty sequences."""
    write_inter(
        tmp_path / "gaps",
        [("a", "x", 4.0, "r s"), ("b", "y", "", ""), ("c", "x", 2.0, "s"), ("a", "y", 3.0, "t")],
        "user_id:token\titem_id:token\trating:float\ttags:token_seq",
    )
    (tmp_path / "gaps" / "gaps.item").write_text("item_id:token\tgenre:token\tyear:float\nx\t\t1990\ny\tdrama\t\n")
    config = {"data_path": str(tmp_path), "load_col": {"inter": "*", "item": "*"}}
    dataset = create_dataset(Config(model="BPR", dataset="gaps", config_dict=config))
    dataset._change_feat_format()
    assert dataset.inter_feat["rating"].tolist() == [4.0, 3.0, 2.0, 3.0]
    assert dataset.inter_feat["tags"][1].tolist() == [0, 0]
    assert dataset.item_feat["genre"].tolist()[1:] == [0, 1]
    year = dataset.item_feat["year"]
    assert not torch.isnan(year).any()
    assert year[1:].tolist() == [1990.0, 1990.0]


@needs("fill_nan")
def test_fill_nan_is_what_fills_them():
    frame = pd.DataFrame({"x": [np.nan]})
    unpatched = dataset_module.Dataset._fill_nan.__wrapped__

    class Dataset:
        feat_name_list = ["inter_feat"]  # noqa: RUF012
        field2type = {"x": sys.modules["recbole.utils"].FeatureType.FLOAT}  # noqa: RUF012
        logger = trainer_module.getLogger()
        inter_feat = frame

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unpatched(Dataset())
    assert frame["x"].isna().all()


@needs("read_only_columns")
def test_read_only_columns(recwarn, tiny):
    torch.set_warn_always(True)  # else torch says it once a process
    try:
        tiny()
    finally:
        torch.set_warn_always(False)
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


@needs("grad_scaler")
def test_grad_scaler(recwarn, tiny):
    tiny(epochs=1).fit()
    assert not [warning for warning in recwarn if "GradScaler" in str(warning.message)]


def test_training_does_not_import_torchs_compiler(tmp_path):
    """And optimizers are as torch made them once somebody imports it."""
    code = f"""
import sys
import recbole_onebp
settings = {{"epochs": 1, "output_dir": {str(tmp_path)!r}, "show_progress": False}}
recbole_onebp.build("OneBP", "ml-100k", config_dict=settings).fit()
assert "torch._dynamo" not in sys.modules
import torch._dynamo
names = "add_param_group", "load_state_dict", "state_dict", "zero_grad"
assert not any(hasattr(getattr(torch.optim.Optimizer, name).__wrapped__, "__dynamo_disable") for name in names)
weight = torch.nn.Parameter(torch.zeros(1))
torch.optim.Adam([weight]).zero_grad()
"""
    done = in_a_fresh_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch_patches._load_refuses_objects(), reason="this torch loads anything")
def test_checkpoints(tmp_path):
    path = tmp_path / "object.pth"
    torch.save(ModelType.GENERAL, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        torch.load(path)
    assert trainer_module.torch.load(path) is ModelType.GENERAL
    assert trainer_module.torch.float32 is torch.float32


@needs("checkpoints")
def test_a_failed_load_leaves_torch_load_as_it_was(tmp_path):
    strict = torch.load
    with pytest.raises(FileNotFoundError):
        sys.modules["recbole.quick_start"].load_data_and_model(str(tmp_path / "absent.pth"))
    assert torch.load is strict


@needs("checkpoints")
def test_models_that_start_from_others_read_tensors_only():
    import recbole.model.general_recommender.neumf as neumf

    assert neumf.torch.load is torch_patches._load_tensors
    assert neumf.torch.nn is torch.nn


@needs("checkpoints")
def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path):
    class Interrupts:
        def __reduce__(self):
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pth"
    trainer_module.torch.save({"epoch": 1}, path)
    with pytest.raises(KeyboardInterrupt):
        trainer_module.torch.save({"weights": torch.zeros(1000), "bad": Interrupts()}, path)
    assert torch.load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_metric_counts(tiny):
    """RecBole sends the number of items and the counters to the CPU, which only tensors take."""
    run = tiny("BPR", metrics=["Recall", "ItemCoverage", "AveragePopularity"], valid_metric="Recall@10", epochs=1)
    result = run.fit()
    assert 0 < result.test["itemcoverage@10"] <= 1
    assert result.test["averagepopularity@10"] > 1


@needs("pop_counts")
@pytest.mark.parametrize("batch", [7, 10_000])
def test_pop_counts(tiny, batch):
    """Every train pair once, whatever the batch, and none of the negatives."""
    run = tiny("Pop", train_batch_size=batch)
    run.fit()
    items = run.train_data.dataset.inter_feat["item_id"]
    assert run.model.item_cnt.squeeze(1).tolist() == torch.bincount(items, minlength=run.dataset.item_num).tolist()
    assert run.model.max_cnt.item() == torch.bincount(items).max()


@needs("traditional_eval_step")
@pytest.mark.parametrize("model", ["Pop", "ItemKNN", "EASE"])
def test_traditional_eval_step(tiny, model):
    often, seldom = (tiny(model, eval_step=step, epochs=10).fit() for step in (1, 5))
    assert (seldom.epochs_run, seldom.valid, seldom.test) == (1, often.valid, often.test)
    assert seldom.valid["ndcg@10"] > 0


def test_output_folders(tiny_config, tmp_path):
    sys.modules["recbole.quick_start"].run_recbole(
        model="Pop", dataset="tiny", config_dict={**tiny_config, "output_dir": str(tmp_path / "here")}
    )
    assert {path.name for path in tmp_path.iterdir()} == {"here"}
    assert list((tmp_path / "here" / "log").rglob("*.log"))
    assert list((tmp_path / "here" / "tensorboard").rglob("events*"))
    assert list((tmp_path / "here").glob("Pop-*.pth"))


def test_without_output_dir_recbole_writes_where_it_always_did(tiny_config, tmp_path):
    del tiny_config["output_dir"]
    sys.modules["recbole.quick_start"].run_recbole(model="Pop", dataset="tiny", config_dict=tiny_config)
    assert {path.name for path in Path.cwd().iterdir()} >= {"log", "log_tensorboard", "saved"}


@needs("download_barrier")
def test_download_barrier(tmp_path, monkeypatch):
    """RecBole's own downloader, with the network taken out of it, in a single process."""
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m.inter", "user_id:token\titem_id:token\na\tx\nb\ty\n")

    def copy(url, folder):
        return shutil.copy(tmp_path / "ml-1m.zip", folder)

    monkeypatch.setattr(dataset_module, "decide_download", lambda url: True)
    monkeypatch.setattr(dataset_module, "download_url", copy)
    config = Config(model="BPR", dataset="ml-1m", config_dict={"data_path": str(tmp_path / "data")})
    assert len(create_dataset(config)) == 2
    with pytest.raises(ValueError, match="Default process group has not been initialized"):
        torch.distributed.barrier()


def test_nothing_is_said_or_loaded_by_importing_the_package():
    code = (
        "import sys, time; start = time.perf_counter(); import recbole_onebp; took = time.perf_counter() - start\n"
        "assert not {'torch', 'recbole', 'numpy', 'pandas'} & set(sys.modules), 'something heavy was loaded'\n"
        "print(took)"
    )
    took = min(float(in_a_fresh_python(code).stdout) for _ in range(3))
    assert took < 0.3
    assert in_a_fresh_python("import recbole_onebp").stderr == ""


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name.split('.')[0] in {hidden} else found(name, package)
sys.meta_path.insert(0, Hide())
"""


def test_without_recbole_everybody_who_needs_it_is_told_the_command():
    command = recbole_onebp.plugin.import_hook.install_command()
    assert command.startswith("pip install ")
    assert ("--no-deps" in command) == (sys.version_info >= (3, 12))
    hide = HIDE.format(hidden=("recbole",))
    imported = in_a_fresh_python(hide + "import recbole_onebp")
    assert imported.returncode == 0
    assert command in imported.stderr
    used = in_a_fresh_python(hide + "import recbole_onebp; recbole_onebp.build")
    assert f"ImportError: {recbole_onebp.plugin.import_hook.missing_recbole()}" in used.stderr
    trained = in_a_fresh_python(
        hide + "from recbole_onebp.cli import main; sys.exit(main(['train', '--model=OneBP', '--dataset=x']))"
    )
    assert trained.returncode == 2
    assert trained.stderr.splitlines()[-1] == f"error: {recbole_onebp.plugin.import_hook.missing_recbole()}"


def test_a_serving_machine_has_neither_torch_nor_recbole_and_hears_nothing():
    silent = in_a_fresh_python(HIDE.format(hidden=("recbole", "torch")) + "import recbole_onebp")
    assert (silent.returncode, silent.stderr) == (0, "")
    commands = HIDE.format(hidden=("recbole", "torch", "yaml")) + (
        "import sys\nfrom recbole_onebp.cli import main\nsys.exit(main(['recommend', 'absent', '--users=u1']))"
    )
    told = in_a_fresh_python(commands)
    assert told.returncode == 2
    assert told.stderr.startswith("error: absent: not a bundle: no such folder")


def test_sequential_models_do_not_slow_down_autograd():
    fresh.check(
        "import recbole_onebp, torch; from recbole.utils import get_model; get_model('SASRec'); "
        "import sys; assert 'recbole.model.sequential_recommender.sine' in sys.modules; "
        "assert not torch.is_anomaly_enabled()"
    )


def test_distutils_version():
    """As on Python 3.12 without setuptools, whatever this one is."""
    hide = HIDE.format(hidden=("distutils", "setuptools", "_distutils_hack"))
    bare = fresh.python(hide + "import thop.profile")
    assert "No module named 'distutils" in bare.stderr
    patched = fresh.python(
        hide + "import recbole_onebp, recbole, thop.profile\n"
        "assert recbole_onebp.plugin.patches.STATUS['distutils_version'] == 'applied'\n"
        "assert 'distutils' not in sys.modules"
    )
    assert (patched.returncode, patched.stderr) == (0, "")


@needs("inplace_keyword")
def test_data_sets_load_with_warnings_as_errors():
    frame = pd.DataFrame({"x": [1.0]}, index=[5])
    dataset = type("Dataset", (), {"feat_name_list": ["inter_feat"], "inter_feat": frame})()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset_module.Dataset._reset_index(dataset)
    assert list(frame.index) == [0]


@needs("array_wrap")
def test_interactions_are_sorted_with_warnings_as_errors():
    interaction = sys.modules["recbole.data.interaction"].Interaction({"x": torch.tensor([2, 1])})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interaction.sort("x")
    assert interaction["x"].tolist() == [1, 2]


@needs("knowledge_loader")
def test_the_loader_of_knowledge_models_has_a_data_set():
    loader = object.__new__(sys.modules["recbole.data.dataloader"].KnowledgeBasedDataLoader)
    loader._dataset = "data"
    assert loader.dataset == "data"
