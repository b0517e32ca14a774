from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from recbole.config import Config

from recbole_onebp.config import generate
from recbole_onebp.config.fields import key_of
from recbole_onebp.config.properties import properties_dir
from recbole_onebp.config.schema import NO_RESULT, OneBPConfig, default_of, dependent_defaults, onebp_defaults
from recbole_onebp.config.settings import RunSettings
from recbole_onebp.util.errors import UserError

KEYS_PAGE = Path(__file__).parents[2] / "docs" / "keys.md"


def test_the_yaml_of_defaults_is_up_to_date():
    written = (properties_dir() / "model" / "OneBP.yaml").read_text(encoding="utf-8")
    assert written == generate.model_yaml(), "run python -m recbole_onebp.config.generate"
    assert yaml.safe_load(written) == onebp_defaults()


def test_the_pages_table_is_up_to_date():
    text = KEYS_PAGE.read_text(encoding="utf-8")
    assert generate.key_table() in text, "run python -m recbole_onebp.config.generate"
    assert generate.keys_page(text) == text


def test_every_key_in_the_table_has_a_meaning():
    rows = [row.split(" | ") for row in generate.key_table().splitlines()[2:]]
    assert {row[0].strip("| `") for row in rows} >= {*onebp_defaults(), "output_dir", "resume", "refit", "split_seed"}
    assert all(len(row) == 5 and row[-1].strip(" |") for row in rows)


def test_a_row_of_the_table_tells_bounds_and_dependent_defaults():
    rows = generate.key_table().splitlines()
    (beta,) = [row for row in rows if row.startswith("| `beta`")]
    assert "| OneBP | `0.0`; `0.99` with `aggregation: step` | float ≥ 0, ≤ 1 |" in beta
    (sampler,) = [row for row in rows if row.startswith("| `fast_sampler`")]
    assert "`True`; other models `False`" in sampler


def test_the_defaults_are_a_valid_configuration():
    defaults = {key: value for key, value in onebp_defaults().items() if key in OneBPConfig.model_fields}
    assert OneBPConfig(**defaults, learner="adam").positives_a_step == 256
    assert default_of("eval_memory_mb") == onebp_defaults()["eval_memory_mb"]
    assert not dependent_defaults({"beta": 0.0, "score": "cosine"})


@pytest.mark.parametrize(
    ("n_items", "pairs", "given", "drawn"),
    [
        (2048, 256, "auto", 256),
        (2048, 64, "auto", 256),
        (2048, 700, "auto", 700),
        (2048, 5000, "auto", 1024),
        (2049, 256, "auto", 1024),
        (9, 256, 7, 7),
    ],
)
def test_shared_negatives_follow_the_number_of_items_and_pairs(n_items, pairs, given, drawn):
    """``n_items`` counts the padding row too."""
    defaults = {key: value for key, value in onebp_defaults().items() if key in OneBPConfig.model_fields}
    config = OneBPConfig(**{**defaults, "n_shared_negatives": given, "train_batch_size": pairs}, learner="adam")
    assert config.shared_negatives(n_items) == drawn
    assert config.model_copy(update={"negatives": "per_pair"}).shared_negatives(n_items) == 0


def test_results_depend_on_all_keys_of_the_model():
    assert {name for name in OneBPConfig.model_fields if name in NO_RESULT} == {"data_cache"}
    assert {"output_dir", "gpu_id", "show_progress", "resume"} <= NO_RESULT
    assert not {"seed", "split_seed", "refit", "epochs", "use_gpu", "fast_sampler"} & NO_RESULT


def test_settings_of_a_run_are_typed_and_frozen():
    settings = RunSettings.from_recbole(Config(model="OneBP", dataset="ml-100k", config_dict={"seed": 3}))
    assert (settings.seed, settings.fast_evaluator, settings.ranks_all_items) == (3, True, True)
    assert settings.output_dir is None
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 4
    sampled = Config(model="OneBP", dataset="ml-100k", config_dict={"eval_args": {"mode": {"valid": "uni100"}}})
    assert not RunSettings.from_recbole(sampled).ranks_all_items
    sampled["seed"] = "three"
    with pytest.raises(UserError, match="seed: 'three' is not allowed"):
        RunSettings.from_recbole(sampled)


def test_stale_files_are_found(tmp_path, capsys):
    (tmp_path / "properties" / "model").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "keys.md").write_text(KEYS_PAGE.read_text())
    stale = tmp_path / "properties" / "model" / "OneBP.yaml"
    stale.write_text("beta: 0.5\n")
    assert generate.main(["--check", str(tmp_path)]) == 1
    assert "OneBP.yaml is stale" in capsys.readouterr().out
    assert stale.read_text() == "beta: 0.5\n"
    assert generate.main([str(tmp_path)]) == 0
    assert stale.read_text() == generate.model_yaml()
    assert generate.main(["--check", str(tmp_path)]) == 0


def test_every_field_of_ours_states_its_scope():
    for name, field in {**RunSettings.model_fields, **OneBPConfig.model_fields}.items():
        assert any(item is key_of(field) for item in field.metadata), name
