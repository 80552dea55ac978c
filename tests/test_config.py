"""Settings: every mistake has a clear line, and what is written is read back the same."""

import dataclasses
import importlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cygnet import cli
from cygnet.config import (
    PRESETS,
    ModelConfig,
    TrainConfig,
    as_yaml,
    load_settings,
    read_yaml,
)
from cygnet.errors import UserError
from cygnet.flags import parse
from cygnet.model.transformer import Transformer

SIZES = {"26m": 25_830_912, "64m": 63_500_000, "104m": 104_000_000, "250m": 248_800_000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings inside settings, with a field of each kind that `load_settings` knows."""

    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    data: tuple[str, ...] = ()
    out: Path = Path("runs/a")
    folder: Path | None = None
    share: float = 0.5


models = st.builds(
    ModelConfig,
    vocab_size=st.integers(1, 200_000),
    num_layers=st.integers(1, 100),
    num_heads=st.sampled_from([4, 8, 12]),
    num_kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([32, 64, 128]),
    rope_theta=st.floats(1e-12, 1e12),
    rms_norm_eps=st.floats(1e-12, 1e-2),
    tie_embeddings=st.booleans(),
)
trainings = st.builds(
    TrainConfig,
    steps=st.none() | st.integers(1, 10**12),
    learning_rate=st.floats(1e-12, 1e3),
    micro_batch=st.none() | st.integers(1, 10**6),
    warmup_share=st.floats(0, 1),
    schedule=st.sampled_from(["wsd", "cosine", "constant"]),
    use_wandb=st.booleans(),
    wandb_run_name=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
)
recipes = st.builds(
    Recipe,
    model=models,
    train=trainings,
    data=st.lists(st.text("abc/*.é李 ", min_size=1)).map(tuple),
    out=st.sampled_from([Path("runs/b"), Path("/tmp/x")]),
    folder=st.none() | st.just(Path("c")),
    share=st.floats(allow_nan=False),
)


@given(recipes)
def test_what_is_written_is_read_back_equal(recipe):
    assert load_settings(Recipe, yaml.safe_load(as_yaml(recipe)), "config.yaml") == recipe


@given(st.floats(1e-12, 1e12))
def test_a_number_may_be_spelt_as_people_spell_it(number):
    for spelling in (repr(number), f"{number:e}", f"{number:.0e}"):
        values = yaml.safe_load(f"learning_rate: {spelling}")
        read = load_settings(TrainConfig, values, "config.yaml").learning_rate
        assert math.isclose(read, float(spelling), rel_tol=1e-12)


def names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if len(field.name) > 5]


@given(data=st.data())
def test_a_misspelt_key_is_named_with_the_nearest_one(data):
    name = data.draw(st.sampled_from(names(TrainConfig)))
    at = data.draw(st.integers(1, len(name) - 1))
    misspelt = data.draw(st.sampled_from([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:]]))
    if misspelt in names(TrainConfig):
        return
    with pytest.raises(UserError) as error:
        load_settings(Recipe, {"train": {misspelt: 1}}, "run.yaml")
    assert str(error.value) == (
        f"run.yaml.train: unknown key {misspelt!r} (did you mean {name!r}?)"
    )


def test_a_key_unlike_any_other_gets_no_suggestion():
    with pytest.raises(UserError) as error:
        load_settings(ModelConfig, {"zzz": 1}, "run.yaml")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"train": {"steps": "many"}}, ["run.yaml.train.steps", "int", "'many'"]),
        ({"train": {"steps": 1.5}}, ["run.yaml.train.steps", "int", "1.5"]),
        ({"train": {"steps": True}}, ["run.yaml.train.steps", "int", "True"]),
        ({"train": {"use_wandb": 1}}, ["run.yaml.train.use_wandb", "bool", "1"]),
        ({"train": {"learning_rate": "fast"}}, ["run.yaml.train.learning_rate", "float", "fast"]),
        ({"train": {"learning_rate": None}}, ["run.yaml.train.learning_rate", "float", "None"]),
        ({"train": {"schedule": "cosin"}}, ["run.yaml.train.schedule", "wsd", "'cosine'"]),
        ({"train": 3}, ["run.yaml.train", "key: value", "3"]),
        ({"data": [3]}, ["run.yaml.data", "str", "3"]),
        ({"out": 3}, ["run.yaml.out", "Path", "3"]),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_place(values, parts):
    with pytest.raises(UserError) as error:
        load_settings(Recipe, values, "run.yaml")
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@given(
    hidden=st.integers(1, 300),
    heads=st.integers(1, 20),
    kv_heads=st.integers(1, 20),
    head_dim=st.none() | st.integers(1, 40),
)
def test_heads_divide_or_the_message_says_which_do_not(hidden, heads, kv_heads, head_dim):
    sizes = {"hidden_size": hidden, "num_heads": heads, "num_kv_heads": kv_heads}
    try:
        config = ModelConfig(**sizes, head_dim=head_dim)
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        if heads % kv_heads:
            assert f"num_heads {heads}" in message
            assert f"num_kv_heads {kv_heads}" in message
        elif head_dim is None and hidden % heads:
            assert f"hidden_size {hidden}" in message
            assert f"num_heads {heads}" in message
        else:
            assert "even" in message
    else:
        assert heads % kv_heads == 0
        assert config.head_size % 2 == 0
        assert head_dim is not None or config.head_size * heads == hidden


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1, "steps": 5},
        {"steps": 0},
        {"tokens": -1},
        {"batch_tokens": 100, "max_seq_len": 200},
        {"warmup_share": 1.5},
        {"micro_batch": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
    ],
)
def test_training_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError) as error:
        TrainConfig(**settings)
    assert next(iter(settings)) in str(error.value)


@given(models.filter(lambda config: config.num_parameters < 3_000_000))
def test_the_parameter_count_is_that_of_the_real_model(config):
    model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters


@pytest.mark.parametrize("name", sorted(SIZES))
def test_presets_have_the_size_that_their_name_says(name):
    values = read_yaml(PRESETS / f"{name}.yaml")
    config = load_settings(ModelConfig, values["model"], name)
    assert config.num_parameters == pytest.approx(SIZES[name], rel=1e-3)
    if name == "26m":
        assert config == ModelConfig()
        assert config.num_parameters == SIZES[name]


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_a_whole_recipe(path):
    from cygnet.recipe import RunCommand

    loaded = load_settings(RunCommand, read_yaml(path), path.name)
    for stage in (loaded.pretrain, loaded.sft, loaded.dpo):
        assert stage.max_seq_len <= loaded.model.max_position


def test_a_file_that_is_no_mapping_or_no_yaml_names_file_and_line(tmp_path):
    path = tmp_path / "run.yaml"
    for content, parts in (
        ("a: 1\nb: [1,\n", [f"{path}:", "not valid YAML"]),
        ("just words", [f"{path}: expected"]),
        ("- a\n- b\n", [f"{path}: expected"]),
    ):
        path.write_text(content)
        with pytest.raises(UserError) as error:
            read_yaml(path)
        for part in parts:
            assert part in str(error.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}


def parsed(*arguments: str, verb: str = "dpo") -> Any:
    entry = cli.VERBS[verb]
    command = getattr(importlib.import_module(entry.module), entry.settings)
    return parse(command, arguments, verb, entry.help, entry.examples)


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("dpo: {steps: 50}\n")
    assert parsed("--config", str(mine)).dpo == replace(parsed().dpo, epochs=None, steps=50)
    both = parsed("--preset", "104m", "--config", str(mine)).dpo
    assert both == replace(parsed("--preset", "104m").dpo, epochs=None, steps=50)
    whole = parsed(str(mine), verb="run")
    demo = parsed(verb="run")
    assert whole.sft == demo.sft and whole.model == demo.model
    assert whole.dpo == replace(demo.dpo, epochs=None, steps=50)


def test_a_length_on_the_command_line_takes_the_place_of_another():
    assert parsed("--steps", "5").dpo.steps == 5
    train = parsed("--preset", "demo", "--epochs", "2", verb="pretrain").pretrain
    assert (train.epochs, train.minutes) == (2, None)
    whole = parsed("--pretrain.steps", "7", verb="run")
    assert (whole.pretrain.steps, whole.pretrain.minutes) == (7, None)


def test_a_preset_gives_a_single_command_no_folder():
    assert str(parsed("--preset", "demo", verb="pretrain").out) == "runs/pretrain"


def test_a_misspelt_section_of_a_file_is_named_beside_a_preset_too(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("dpoo: {steps: 50}\n")
    with pytest.raises(UserError, match="dpoo"):
        parsed("--preset", "104m", "--config", str(mine))
