"""The YAML is typed and frozen; a mistake is one line that names value, rule and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from kswap.config import SwapConfig, json_schema
from kswap.errors import UserError
from kswap.presets import PRESETS
from kswap.run_folder import RunFolder, write_config
from kswap.yaml_text import merge, parse_overrides, read_yaml

MINIMAL = {
    "model": "m",
    "learn": {"data": "a"},
    "forget": {"data": "b", "classes": ["x"]},
    "retain": {"data": "b"},
}


def test_every_preset_is_valid_and_reads_back_to_itself():
    for preset in PRESETS:
        config = SwapConfig.from_mapping({**MINIMAL, "preset": preset})
        assert SwapConfig.from_mapping(config.to_mapping()) == config


def test_the_users_value_goes_before_the_presets_and_the_command_line_before_both():
    values = {**MINIMAL, "preset": "paper", "stages": {"learn": {"epochs": 2}}}
    config = SwapConfig.from_mapping(values, ["--stages.learn.epochs", "3", "--seed=7"])
    assert config.stages.learn.epochs == 3
    assert config.seed == 7
    assert (
        config.stages.forget.epochs
        == PRESETS["paper"]["classification"]["stages"]["forget"]["epochs"]
    )


def test_paper_is_the_reference_setting():
    config = SwapConfig.from_mapping({**MINIMAL, "preset": "paper"})
    learn, forget = config.stages.learn, config.stages.forget
    assert config.adapter.model_dump() == {"rank": 8, "scale": 0.125, "dropout": 0.0}
    assert (config.head.init, config.head.train) == ("random", "none")
    assert (learn.terms["learn"].weight, learn.terms["retain"].weight) == (1, 0.2)
    assert (forget.terms["forget"].weight, forget.terms["forget"].bound) == (0.2, 105)
    assert forget.terms["forget"].objective == "bounded_ce_batch"
    for stage in (learn, forget):
        assert stage.optimiser.model_dump() == {
            "lr": 1e-2,
            "final_lr": 1e-5,
            "schedule": "cosine",
            "warmup_fraction": 0.0,
            "weight_decay": 0.05,
            "clip_norm": None,
        }
        assert (stage.sparsity.weight, stage.sparsity.method) == (0.005, "subgradient")
        assert stage.epochs == 5
        assert {s.batch_size for s in stage.streams.values()} == {80}
    assert (learn.anchor, forget.anchor) == ("retain", "kept")
    assert (config.learn.fraction, config.forget.fraction, config.retain.fraction) == (1, 0.1, 0.1)
    assert config.data.augment == "none"


def test_a_presets_source_values_need_the_source():
    config = SwapConfig.from_mapping(
        {"model": "m", "order": "L", "learn": {"data": "a"}, "preset": "paper"}
    )
    assert config.retain is None


def test_config_is_frozen():
    config = SwapConfig.from_mapping(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


def test_a_copy_with_other_values_keeps_them_whatever_the_task_brings():
    first = SwapConfig.from_mapping({**MINIMAL, "data": {"augment": "flip"}, "output": "a"})
    stages = first.stages.model_copy(
        update={"learn": first.stages.learn.model_copy(update={"epochs": 2.5})}
    )
    other = first.model_copy(
        update={"seed": 3, "output": Path("b"), "stages": stages, "preset": "paper"}
    )
    for config in (other, other.for_task("classification"), other.model_copy(deep=True)):
        assert (config.seed, str(config.output), config.preset) == (3, "b", "paper")
        assert config.stages.learn.epochs == 2.5
        assert config.data.augment == "flip"  # given before
        assert config.head.init == "random"  # the preset's
    assert first.for_task("classification").seed == 0
    with pytest.raises(UserError, match="an order is one or more of L"):
        first.model_copy(update={"order": "LX"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ordr": "LF"}, "ordr: unknown key; closest: 'order'"),
        (
            {"stages": {"learn": {"optimizer": {}}}},
            "stages.learn.optimizer: unknown key; closest: 'optimiser'",
        ),
        ({"learn": {"dat": "x"}}, "learn.dat: unknown key; closest: 'data'"),
        (
            {"stages": {"learn": {"terms": {"learn": {"wieght": 1}}}}},
            "stages.learn.terms.learn.wieght: unknown key; closest: 'weight'",
        ),
        (
            {"stages": {"learn": {"streams": {"learn": {"batchsize": 1}}}}},
            "stages.learn.streams.learn.batchsize: unknown key; closest: 'batch_size'",
        ),
        (
            {"learn": {"data": {"train": "a", "tset": "b"}}},
            "learn.data.tset: unknown key; closest: 'test'",
        ),
        (
            {"learn": {"data": {"train": {"images": "a", "anotations": "b", "annotations": "b"}}}},
            "learn.data.train.anotations: unknown key; closest: 'annotations'",
        ),
        (
            {"stages": {"learn": {"terms": {"forgt": {"weight": 0}}}}},
            "stages.learn.terms.forgt.roles: is missing; add it (see `kswap schema`), or name one "
            "that is there: learn, retain, keep, forget (and 1 more)",
        ),
        ({"order": "LXF"}, "order: 'LXF' is not allowed: an order is one or more of L"),
        ({"order": ""}, "order: '' is not allowed: an order is one or more of L"),
        ({"order": None}, "order: None is not allowed"),
        ({"seed": "many"}, "seed: 'many' is not allowed"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"seed": True}, "seed: True is not allowed: this is a number, not true or false"),
        (
            {"stages": {"learn": {"epochs": True}}},
            "stages.learn.epochs: True is not allowed: this is a number",
        ),
        ({"adapter": {"rank": 0}}, "adapter.rank: 0 is not allowed"),
        ({"adapter": {"scale": 0}}, "adapter.scale: 0 is not allowed"),
        ({"retain": {"data": "b", "fraction": 0}}, "retain.fraction: 0 is not allowed"),
        ({"retain": {"data": "b", "fraction": 2}}, "retain.fraction: 2 is not allowed"),
        (
            {"stages": {"learn": {"terms": {"learn": {"weight": -1}}}}},
            "stages.learn.terms.learn.weight: -1",
        ),
        (
            {"stages": {"learn": {"optimiser": {"lr": float("nan")}}}},
            "stages.learn.optimiser.lr: nan",
        ),
        (
            {"stages": {"learn": {"optimiser": {"lr": float("inf")}}}},
            "stages.learn.optimiser.lr: inf",
        ),
        (
            {"stages": {"learn": {"terms": {"new": {"roles": ["learn"]}}}}},
            "stages.learn.terms.new.objective: is missing",
        ),
        ({"data": {"test_fraction": 1}}, "data.test_fraction: 1 is not allowed"),
        ({"learn": None}, "order 'LF' has a stage that learns, but there is no 'learn:' source"),
        ({"forget": None}, "order 'LF' has a stage that forgets, but there is no 'forget:' source"),
        (
            {"preset": "best"},
            "preset: 'best' is not a preset; take one of default, paper, retain-free",
        ),
        ({"preset": ["default"]}, "preset: ['default'] is not a preset"),
        ({"learn": "data/birds"}, "learn: 'data/birds' is not allowed: this is a section, keys"),
        ({"retain": {"data": ["a"]}}, "retain.data: ['a'] is not allowed: this is one text;"),
        (
            {"forget": {"data": "b", "classes": {"a": 1}}},
            "forget.classes: {'a': 1} is not allowed: this is a list, such as [a, b]",
        ),
        (
            {"retain": {"data": "b", "rename": ["a"]}},
            "retain.rename: ['a'] is not allowed: this is a section, keys",
        ),
        ({"head": None}, "head: None is not allowed: this is a section, keys"),
        ({"output": 3}, "output: 3 is not allowed: this is a path: put numbers"),
        (
            {"learn": {"data": "a", "classes": "fox"}},
            "learn.classes: 'fox' is not allowed: it is a word, not a list; write [fox]",
        ),
        (
            {"learn": {"data": "a", "classes": ["fox", 0]}},
            "learn.classes.1: 0 is not allowed: a class",
        ),
        ({"learn": {"data": "a", "class_names": "fox"}}, "write a mapping of numbers to names"),
        ({"learn": {"data": "a", "class_names": {"x": "fox"}}}, "write a mapping of numbers to"),
        ({"learn": {"data": "a", "class_names": {1: 2}}}, "write a mapping of numbers to names"),
        ({"learn": {"data": "a", "class_names": [1, 2]}}, "write a mapping of numbers to names"),
        ({"learn": {"data": "a", "class_names": {-1: "fox"}}}, "-1 is no value of a mask and no"),
        ({"stages": 3}, "stages: 3 is not allowed"),
        (
            {"stages": {"learn": {"anchor": "here"}}},
            "stages.learn: anchor 'here' is no stream of this stage; take one of learn, retain",
        ),
        (
            {"learn": {"data": "a", "shuffle_buffer": 3}},
            "learn: shuffle_buffer is of a source that streams; add streaming: true, or leave it",
        ),
        ({"training": {"precision": "int8"}}, "training.precision: 'int8' is not allowed"),
        ({"model": 3}, "model: 3 is not allowed: this is a text: put numbers, dates, yes, no,"),
        ({"learn": {"data": "a", "image_column": 1}}, "image_column: 1 is not allowed: this is a"),
        ({"model": None}, "model: None is not allowed"),
    ],
)
def test_a_mistake_is_one_line(change, message):
    with pytest.raises(UserError) as caught:
        SwapConfig.from_mapping({**MINIMAL, **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed", "1"], "'seed': an override is written --key value"),
        (["--seed"], "--seed: has no value"),
        (["--seed", "--order"], "--seed: has no value"),
        (["--seed", "1", "--seed.x", "2"], "has a value of its own already"),
        (["--stages.learn.epoch", "3"], "stages.learn.epoch: unknown key; closest: 'epochs'"),
    ],
)
def test_a_wrong_override_is_one_line(words, message):
    with pytest.raises(UserError, match=r".") as caught:
        SwapConfig.from_mapping(MINIMAL, words)
    assert message in str(caught.value)


def test_overrides_are_read_as_yaml():
    words = ["--a.b", "1e-3", "--a.c=true", "--d", "[x, y]", "--e", "null", "--order", "FL"]
    assert parse_overrides(words) == {
        "a": {"b": 1e-3, "c": True},
        "d": ["x", "y"],
        "e": None,
        "order": "FL",
    }


@pytest.mark.parametrize("path", ["2024", "1e3", "no", "~", "2024-01-01", "a #1", "#1", "&x", "!a"])
@pytest.mark.parametrize("key", ["model", "output", "learn.data", "learn.data.test"])
def test_a_path_on_the_command_line_is_taken_as_it_is(key, path):
    for words in ([f"--{key}", path], [f"--{key}={path}"]):
        found = parse_overrides(words)
        for part in key.split("."):
            found = found[part]
        assert found == path


def test_a_split_on_the_command_line_can_be_taken_away_and_data_be_a_mapping():
    words = ["--learn.data.test", "null", "--retain.data", "{train: a}"]
    expected = {"learn": {"data": {"test": None}}, "retain": {"data": {"train": "a"}}}
    assert parse_overrides(words) == expected


def test_merge_replaces_lists_and_leaves_its_arguments_alone():
    base, over = {"a": {"x": [1], "y": 2}}, {"a": {"x": [3]}}
    assert merge(base, over) == {"a": {"x": [3], "y": 2}}
    assert base == {"a": {"x": [1], "y": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not valid YAML"),
        ("- a", "a config is a mapping"),
        ("", "a config is a mapping"),
        ("model: a\nmodel: b", "key 'model' stands twice, in line 1 and in line 2"),
        (
            "model: a\n\nlearn:\n  data: a\n  fraction: 1\n\n  data: b",
            "key 'data' stands twice, in line 4 and in line 7",
        ),
        (
            "model: a\nlearn: &a {data: a}\nretain:\n  <<: *a\n  fraction: 1\n  fraction: 1",
            "key 'fraction' stands twice, in line 5 and in line 6",
        ),
        ("learn: {<<: 3}", "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        ("model: !!bool x", "not valid YAML"),
        ("model: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, text, message):
    path = tmp_path / "swap.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        SwapConfig.from_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        SwapConfig.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        SwapConfig.from_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        SwapConfig.from_yaml(tmp_path / "latin.yaml")


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path):
    path = tmp_path / "swap.yaml"
    path.write_text(json.dumps(MINIMAL)[:-1] + ", stages: {learn: {optimiser: {lr: 1e-3}}}}")
    assert SwapConfig.from_yaml(path).stages.learn.optimiser.lr == 1e-3


MERGED = """
model: m
learn: &shared {data: a, fraction: 0.5}
forget: &red
  <<: *shared
  data: b
  classes: [red]
retain: {<<: [*red, {labels: complete}], classes: null}
"""


def test_yaml_merge_keys_lie_under_a_mappings_own(tmp_path):
    (tmp_path / "swap.yaml").write_text(MERGED)
    config = SwapConfig.from_yaml(tmp_path / "swap.yaml")
    found = [getattr(config, role) for role in ("learn", "forget", "retain")]
    assert [(one.data, one.fraction) for one in found] == [("a", 0.5), ("b", 0.5), ("b", 0.5)]
    assert [one.classes for one in found] == [None, ("red",), None]
    assert found[2].labels == "complete"


def test_schema_documents_every_field():
    schema = json_schema()
    assert schema["required"] == ["model"]
    assert schema["additionalProperties"] is False
    for name, definition in [("SwapConfig", schema), *schema["$defs"].items()]:
        for field, value in definition.get("properties", {}).items():
            described = (
                value.get("description")
                or schema["$defs"][value["$ref"].split("/")[-1]]["description"]
            )
            assert described, f"{name}.{field} has no description"


def test_schema_accepts_what_users_write():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(MINIMAL, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**MINIMAL, "ordr": "LF"}, json_schema())


@pytest.mark.parametrize("layers", ["head", 0.5, ["head", 1.0], 0, "x", ["x"], [1.5]])
def test_schema_and_program_agree_on_layers(layers):
    jsonschema = pytest.importorskip("jsonschema")
    values = {**MINIMAL, "stages": {"learn": {"terms": {"learn": {"layers": layers}}}}}
    valid = jsonschema.Draft202012Validator(json_schema()).is_valid(values)
    try:
        SwapConfig.from_mapping(values)
    except UserError:
        assert not valid
    else:
        assert valid


def test_schema_accepts_the_config_that_a_run_leaves(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    folder = RunFolder(tmp_path)
    write_config(folder, SwapConfig.from_mapping(MINIMAL), {"kswap": "0.1.0"})
    jsonschema.validate(yaml.safe_load(folder.config.read_text()), json_schema())
    assert SwapConfig.from_yaml(folder.config) == SwapConfig.from_mapping(MINIMAL)


@pytest.mark.parametrize(
    ("data", "said"),
    [({"train": "x", "bogus": 1}, "data.bogus: unknown key"), ({"test": "x"}, "train: is missing")],
)
def test_a_wrong_mapping_of_splits_is_not_called_a_wrong_text(data, said):
    with pytest.raises(UserError, match=said):
        SwapConfig.from_mapping({"model": "m", "learn": {"data": data}, "order": "L"})


def test_a_tag_that_does_not_fit_its_value_is_no_traceback(tmp_path):
    (tmp_path / "a.yaml").write_text("a: !!timestamp x")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(tmp_path / "a.yaml")
