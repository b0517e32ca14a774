"""Models of other libraries, and sequential ones, beside all others."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import recbole_onebp
from recbole_onebp.experiments.compare import compare
from recbole_onebp.plugin.outside import OutsideModel
from recbole_onebp.util.errors import UserError
from support import fresh

IN_ORDER = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"},
    "metrics": ["Recall", "NDCG"],
    "topk": [20],
    "valid_metric": "NDCG@20",
    "show_progress": False,
    "seed": 1,
}


class MostTaken:
    """The interface of ``implicit``: items by the number of their users, but not the last one."""

    def __init__(self, pairs):
        self.taken = np.asarray(pairs.sum(axis=0)).ravel()

    def recommend(self, userid, user_items, N, filter_already_liked_items):  # noqa: N803
        assert user_items.shape == (len(userid), len(self.taken))
        assert not filter_already_liked_items
        items = np.argsort(-self.taken, kind="stable")[:N].astype(np.int32)
        scores = self.taken[items].astype(np.float32)
        items[-1], scores[-1] = -1, np.finfo(np.float32).min
        return np.tile(items, (len(userid), 1)), np.tile(scores, (len(userid), 1))


class Taken(OutsideModel):
    def fit(self, pairs, config, dataset):
        return MostTaken(pairs)


@pytest.fixture(scope="module")
def pop(tmp_path_factory):
    keys = {**IN_ORDER, "output_dir": str(tmp_path_factory.mktemp("pop"))}
    return recbole_onebp.build("Pop", "ml-100k", config_dict=keys)


@pytest.fixture(scope="module")
def pops_test(pop):
    return pop.fit().test


def test_scores_of_another_library_stand_at_recboles_items(pop):
    dataset = pop.train_data._dataset
    model = Taken(pop.config, dataset)
    users = torch.arange(1, dataset.user_num)
    scores = model.full_sort_predict({"user_id": users}).view(len(users), -1).numpy()
    taken = np.bincount(dataset.inter_feat["item_id"].numpy(), minlength=dataset.item_num)
    worst = np.flatnonzero(scores[0] != taken)
    assert len(worst) <= 1, "all but the item that the list left out"
    assert (scores == scores[0]).all()
    pairs = {"user_id": users[:50], "item_id": torch.arange(50)}
    np.testing.assert_array_equal(model.predict(pairs), scores[np.arange(50), np.arange(50)])
    assert model.calculate_loss(pairs) == 0


class Recorder:
    """Instead of a class of ``implicit``: a factor of an item is the number of its users."""

    made: dict

    def __init__(self, **settings):
        type(self).made = settings

    def fit(self, pairs, show_progress):
        self.user_factors = np.ones((pairs.shape[0], 1), np.float32)
        self.item_factors = np.asarray(pairs.sum(axis=0), np.float32).T


@pytest.mark.parametrize(
    ("name", "module", "kind", "settings"),
    [
        ("ImplicitALS", "als", "AlternatingLeastSquares", {"iterations": 15, "alpha": 7.0, "regularization": 0.01}),
        ("ImplicitBPR", "bpr", "BayesianPersonalizedRanking", {"iterations": 100, "learning_rate": 0.01}),
    ],
)
def test_implicit_gets_the_settings(monkeypatch, pops_test, name, module, kind, settings):
    monkeypatch.setitem(sys.modules, "implicit", ModuleType("implicit"))
    monkeypatch.setitem(sys.modules, f"implicit.{module}", SimpleNamespace(**{kind: Recorder}))
    own = {"alpha": 7.0} if name == "ImplicitALS" else {}
    run = recbole_onebp.build(name, "ml-100k", config_dict={**IN_ORDER, "embedding_size": 8, **own})
    assert Recorder.made.items() >= {"factors": 8, "random_state": 1, **settings}.items()
    assert run.fit().test == pytest.approx(pops_test, abs=0.003)  # but for ties


def test_lightfm_gets_ids_and_values(monkeypatch):
    class Model:
        def __init__(self, **settings):
            assert settings["no_components"] == 3
            assert settings["loss"] == "warp"

        def fit(self, pairs, item_features, epochs, num_threads):
            self.shape, self.features = pairs.shape, item_features
            assert item_features.indices.dtype == item_features.indptr.dtype == np.int32  # others LightFM refuses
            assert epochs == 2

        def get_user_representations(self):
            rng = np.random.default_rng(0)
            return rng.normal(size=self.shape[0]).astype("f"), rng.normal(size=(self.shape[0], 3)).astype("f")

        def get_item_representations(self, features):
            rng = np.random.default_rng(1)
            return rng.normal(size=features.shape[0]).astype("f"), rng.normal(size=(features.shape[0], 3)).astype("f")

    monkeypatch.setitem(sys.modules, "lightfm", SimpleNamespace(LightFM=Model))
    keys = {**IN_ORDER, "embedding_size": 3, "n_iterations": 2}
    run = recbole_onebp.build("LightFM", "ml-100k", config_dict={**keys, "item_features": ["class"]})
    assert run.config["load_col"]["item"] == ["item_id", "class"]
    user, item = torch.tensor([3]), torch.tensor([9])
    (user_bias, user_e), (item_bias, item_e) = run.model._fitted
    score = run.model.predict({"user_id": user, "item_id": item})
    assert score.item() == pytest.approx(user_e[2] @ item_e[8] + item_bias[8] + user_bias[2], rel=1e-5)


def test_a_library_that_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit", None)
    with pytest.raises(UserError, match="ImplicitALS needs the package implicit: pip install implicit"):
        recbole_onebp.build("ImplicitALS", "ml-100k", config_dict=IN_ORDER)


def test_a_comparison_without_a_library_does_not_begin(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lightfm", None)
    (tmp_path / "plan.yaml").write_text("dataset: ml-100k\nmodels: [Pop, LightFM]\n")
    with pytest.raises(
        UserError, match=r"models, LightFM: LightFM needs the package lightfm: pip install lightfm-next"
    ):
        compare([str(tmp_path / "plan.yaml")], {"output_dir": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


def test_a_model_of_ones_own_is_found_by_name(tmp_path):
    """The environment names its folder; its keys are known, and so is a wrong one."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from recbole_onebp.plugin.outside import OutsideModel\n"
        "class Mine(OutsideModel):\n"
        "    def fit(self, pairs, config, dataset):\n"
        "        return np.asarray(pairs.sum(axis=0)).ravel() * config['sign']\n"
        "    def scores(self, users):\n"
        "        return np.tile(self._fitted, (len(users), 1))\n"
    )
    (tmp_path / "Mine.yaml").write_text("sign: 1\n")

    def run(*more, models):
        arguments = ["train", "--model=Mine", "--dataset=ml-100k", *more]
        return fresh.python(
            f"import os, sys; os.environ['RECBOLE_ONEBP_MODELS'] = {str(models)!r}\n"
            f"from recbole_onebp.cli import main; sys.exit(main({arguments}))"
        )

    found = run(f"--output_dir={tmp_path / 'out'}", models=tmp_path)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "result.json").exists()
    wrong = run("--signs=2", models=tmp_path)
    assert wrong.returncode == 2
    assert "signs: no such configuration key; did you mean sign?" in wrong.stderr
    assert "there is none named 'Mine'" in run(models="").stderr


@pytest.fixture(scope="module", params=["HistorySASRec", "HistoryGRU4Rec"])
def sequential(request, tmp_path_factory):
    small = {"hidden_size": 16, "train_batch_size": 8192, "history_length": 5}
    small |= {"inner_size": 16, "n_layers": 1} if request.param == "HistorySASRec" else {"embedding_size": 8}
    keys = {**IN_ORDER, **small, "output_dir": str(tmp_path_factory.mktemp("sequential"))}
    return recbole_onebp.build(request.param, "ml-100k", config_dict=keys)


def histories(dataset):
    pairs = dataset.inter_feat
    user, item, time = (pairs[field].numpy() for field in ("user_id", "item_id", "timestamp"))
    order = np.lexsort((time, user))
    return {one: item[order][user[order] == one] for one in np.unique(user)}


def test_a_sequential_model_ranks_from_the_latest_train_items(sequential):
    model, dataset = sequential.model.eval(), sequential.train_data._dataset
    of_user = histories(dataset)
    users = [1, 7, 200]
    latest = torch.tensor(np.stack([of_user[user][-5:] for user in users]))
    wanted = model.model.full_sort_predict({"item_id_list": latest, "item_length": torch.tensor([5, 5, 5])})
    scores = model.full_sort_predict({"user_id": torch.tensor(users)}).view(3, -1)
    torch.testing.assert_close(scores, wanted)
    pairs = {"user_id": torch.tensor(users), "item_id": torch.tensor([4, 5, 6])}
    torch.testing.assert_close(model.predict(pairs), wanted[torch.arange(3), torch.tensor([4, 5, 6])])


def test_a_sequential_model_learns_a_pair_from_those_before(sequential):
    model = sequential.model.eval()  # without dropout, the loss is a number
    items = histories(sequential.train_data._dataset)[7]
    place = [0, 2, 9]
    batch = {"user_id": torch.full((3,), 7), "item_id": torch.tensor(items[place])}
    padded = torch.tensor(np.stack([np.append(items[:2], [0, 0, 0]), items[4:9]]))
    inner = {"item_id_list": padded, "item_length": torch.tensor([2, 5]), "item_id": torch.tensor(items[[2, 9]])}
    torch.testing.assert_close(model.calculate_loss(batch), model.model.calculate_loss(inner))


def test_a_sequential_model_needs_times(sequential):
    keys = {**IN_ORDER, "load_col": {"inter": ["user_id", "item_id"]}, "eval_args": {"order": "RO"}}
    with pytest.raises(UserError, match="needs the order of the interactions; load timestamp or name TIME_FIELD"):
        recbole_onebp.build(sequential.config["model"], "ml-100k", config_dict=keys)
