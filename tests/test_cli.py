"""The command line as a user meets it: every mistake is one line and status 2, and leaves nothing
behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import NEW, OLD, tiny_processor, tiny_vit, write_colours

import kswap
from kswap.cli import main
from kswap.errors import UserError
from kswap.options import parse


def run(values: dict, folder: Path, *words: str) -> list[str]:
    path = folder / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["run", str(path), *words]


def refused(words: list[str], capsys) -> str:
    """Run a command that must be refused and return its one line."""
    assert main(words) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert lines[-1].startswith("kswap: error: ")
    assert all(line.startswith("kswap: ") for line in lines), said.err
    assert "Traceback" not in said.err + said.out
    return lines[-1]


def only(folder: Path, *names: str) -> Path:
    folder.mkdir()
    return write_colours(folder / "images", names, count=6)


# --------------------------------------------------------------------------------------- bad input
def no_folder(v, tmp):
    v["learn"]["data"] = str(tmp / "none")


def empty_folder(v, tmp):
    (tmp / "empty").mkdir()
    v["learn"]["data"] = str(tmp / "empty")


def no_class_folders(v, tmp):
    images = only(tmp / "flat", "yellow")
    (tmp / "only").mkdir()
    for path in images.rglob("*.png"):
        shutil.copy(path, tmp / "only" / path.name)
    v["learn"]["data"] = str(tmp / "only")


def unknown_class(v, tmp):
    v["forget"]["classes"] = ["gren"]


def unknown_learn_class(v, tmp):
    v["learn"]["classes"] = ["yelow"]


def learn_class_exists(v, tmp):
    v["learn"]["data"] = str(only(tmp / "x", "yellow", "green"))


def two_roles(v, tmp):
    v["retain"]["classes"] = ["red", "green"]


def same_class_twice(v, tmp):
    v["forget"]["classes"] = ["red", "red"]


def nothing_left(v, tmp):
    v["retain"]["data"] = str(only(tmp / "x", "red"))


def empty_class(v, tmp):
    images = only(tmp / "x", "yellow")
    (images / "magenta").mkdir()
    v["learn"] = {"data": str(images), "classes": ["yellow", "magenta"]}


def broken_image(v, tmp):
    images = only(tmp / "x", "yellow")
    content = (images / "yellow/000.png").read_bytes()
    (images / "yellow/001.png").write_bytes(content[:60])
    v["learn"]["data"] = str(images)


def not_an_image(v, tmp):
    images = only(tmp / "x", "yellow")
    (images / "yellow/notes.png").write_text("hello")
    v["learn"]["data"] = str(images)


def model_missing(v, tmp):
    v["model"] = str(tmp / "none")


def model_on_no_hub(v, tmp):
    v["model"] = "nobody/nothing"


def copy_base(v, tmp) -> Path:
    shutil.copytree(v["model"], tmp / "base")
    v["model"] = str(tmp / "base")
    return tmp / "base"


def model_without_config(v, tmp):
    (copy_base(v, tmp) / "config.json").unlink()


def model_without_weights(v, tmp):
    (copy_base(v, tmp) / "model.safetensors").unlink()


def model_without_processor(v, tmp):
    (copy_base(v, tmp) / "preprocessor_config.json").unlink()


def model_pickled(v, tmp):
    folder = copy_base(v, tmp)
    (folder / "model.safetensors").unlink()
    torch.save(tiny_vit().state_dict(), folder / "pytorch_model.bin")


def model_cut(v, tmp):
    weights = copy_base(v, tmp) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def model_garbage(v, tmp):
    (copy_base(v, tmp) / "model.safetensors").write_bytes(b"\xff" * 400)


def model_of_another_task(v, tmp):
    from transformers import ViTConfig, ViTForMaskedImageModeling

    config = ViTConfig(
        image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    ViTForMaskedImageModeling(config).save_pretrained(tmp / "mim")
    tiny_processor().save_pretrained(tmp / "mim")
    v["model"] = str(tmp / "mim")


def output_is_a_file(v, tmp):
    (tmp / "run").write_text("")


def output_holds_something_else(v, tmp):
    (tmp / "run").mkdir()
    (tmp / "run" / "thesis.tex").write_text("")


def order_without_learn_data(v, tmp):
    v.pop("learn")


def order_without_forget_data(v, tmp):
    v.pop("forget")


def output_in_the_data(v, tmp):
    v["learn"]["data"] = str(only(tmp / "x", "yellow"))
    v["output"] = str(tmp / "x/images/run")


def output_too_long(v, tmp):
    v["output"] = str(tmp / ("y" * 300))


def output_with_a_null_byte(v, tmp):
    v["output"] = "a\0b"


def model_too_long(v, tmp):
    v["model"] = "x" * 5000


def data_too_long(v, tmp):
    v["learn"]["data"] = "x" * 5000


def data_of_nobody(v, tmp):
    v["learn"]["data"] = "~there-is-no-such-user/x"


def wrong_architectures(v, tmp):
    path = copy_base(v, tmp) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": 3}))


def wrong_forgotten(v, tmp):
    path = copy_base(v, tmp) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kswap": {"forgotten": 3}}))


def processor_of_another_size(v, tmp):
    path = copy_base(v, tmp) / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "size": {"height": 64, "width": 64}}))


def every_class_forgotten(v, tmp):
    v["forget"]["classes"] = list(OLD)
    v["retain"] = None


def class_like_no_other(v, tmp):
    v["forget"]["classes"] = ["unicorn"]


def name_with_a_line_break(v, tmp):
    v["learn"]["rename"] = {"yellow": "yel\nlow"}


def empty_name(v, tmp):
    v["learn"]["rename"] = {"yellow": " "}


def folder_that_is_not_utf8(v, tmp):
    images = only(tmp / "x", "yellow")
    (images / "yellow").rename(os.fsdecode(os.fsencode(images) + b"/\xff"))
    v["learn"]["data"] = str(images)


def column_of_a_folder(v, tmp):
    v["learn"]["image_column"] = "photo"


def pipe_among_the_images(v, tmp):
    images = only(tmp / "x", "yellow")
    os.mkfifo(images / "yellow/pipe.png")
    v["learn"]["data"] = str(images)


def anchor_that_is_no_stream(v, tmp):
    v["stages"]["learn"]["anchor"] = "nowhere"


BAD = [
    (output_in_the_data, "lies in the data of learn"),
    (output_too_long, "cannot be written to"),
    (output_with_a_null_byte, "is no path"),
    (model_too_long, "is no path"),
    (data_too_long, "is not a path"),
    (data_of_nobody, "is not a path"),
    (processor_of_another_size, "cannot take images of (64, 64) pixels"),
    (wrong_architectures, "architectures in config.json"),
    (wrong_forgotten, "kswap.forgotten in config.json"),
    (every_class_forgotten, "these are all 4 classes"),
    (class_like_no_other, "name one of its classes: 'red', 'green', 'blue', 'cyan'"),
    (name_with_a_line_break, "'yel\\nlow'"),
    (empty_name, "cannot be the name of a class"),
    (folder_that_is_not_utf8, "'\\udcff'"),
    (column_of_a_folder, "'photo' is a column of a table"),
    (pipe_among_the_images, "pipe.png"),
    (anchor_that_is_no_stream, "anchor 'nowhere' is no stream"),
    (no_folder, "none"),
    (empty_folder, "empty"),
    (no_class_folders, "class"),
    (unknown_class, "'green'"),
    (unknown_learn_class, "'yellow'"),
    (learn_class_exists, "'green'"),
    (two_roles, "'red'"),
    (same_class_twice, "'red'"),
    (nothing_left, "retain"),
    (empty_class, "'magenta'"),
    (broken_image, "001.png"),
    (not_an_image, "notes.png"),
    (model_missing, "none"),
    (model_on_no_hub, "nobody/nothing"),
    (model_without_config, "config.json"),
    (model_without_weights, "safetensors"),
    (model_without_processor, "preprocessor_config.json"),
    (model_pickled, "pickled weights only"),
    (model_cut, "damaged or cut off"),
    (model_garbage, "damaged or cut off"),
    (model_of_another_task, "ViTForMaskedImageModeling"),
    (output_is_a_file, "is a file"),
    (output_holds_something_else, "thesis.tex"),
    (order_without_learn_data, "no 'learn:' source"),
    (order_without_forget_data, "no 'forget:' source"),
]


@pytest.mark.parametrize(("spoil", "named"), BAD, ids=[f.__name__ for f, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(values, tmp_path, capsys, spoil, named):
    spoil(values, tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    existed = (tmp_path / "run").exists()
    assert named in refused(run(values, tmp_path), capsys)
    assert (tmp_path / "run").exists() is existed
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--order", "LXF"], "LXF"),
        (["--order="], "order: ''"),
        (["--stages.learn.depth", "ALL"], "a depth is all, auto or last-K, such as last-4"),
        (["--adapter.rank", "0"], "adapter.rank: 0"),
        (["--retain.fraction", "2"], "retain.fraction: 2"),
        (["--retain.fraction", "0"], "retain.fraction: 0"),
        (["--stages.learn.terms.learn.weight", "-1"], "weight: -1"),
        (["--bogus", "1"], "bogus: unknown key"),
        (["--seed"], "--seed: has no value"),
        (["--seed", "--order", "LF"], "--seed: has no value"),
        (["--seed", "--order=LF"], "--seed: has no value"),
        (["--seed", "--analysis"], "--seed: has no value"),
        (["--seed", "-1e-3"], "seed: -0.001"),
        (["--seed", "x"], "seed: 'x'"),
        (["--training.precision", "fp16", "--training.device", "cpu"], "'fp16' cannot be computed"),
        (["--training.device", "cuda"], "'cuda' is not there"),
        (["--training.trackers", "[wandb]"], "'wandb' is not installed"),
        (["second.yaml"], "unrecognized: second.yaml; see `kswap run --help`"),
        (
            ["--forget.classes", "red", "green"],
            "unrecognized: green; a list is one word, such as '[red, green]'; see `kswap run --he",
        ),
    ],
)
def test_bad_overrides(values, tmp_path, capsys, words, named):
    assert named in refused(run(values, tmp_path, *words), capsys)
    assert not (tmp_path / "run").exists()


def test_bad_images_can_be_skipped_and_are_listed(values, tmp_path, capsys):
    not_an_image(values, tmp_path)
    values["data"] = {"on_bad_image": "skip"}
    assert main(run(values, tmp_path)) == 0
    assert "notes.png" in capsys.readouterr().err
    notes = json.loads((tmp_path / "run/results.json").read_text())["notes"]
    assert any("notes.png" in note for note in notes)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["run"], "config"),
        (["run", "none.yaml"], "none.yaml: there is no such file"),
        (["demo", "poetry"], "poetry"),
        (["evaluate", "none"], "none: is not a run folder"),
        (["evaluate", "none", "--seed", "1"], "unrecognized: --seed 1; see `kswap evaluate --h"),
        (["export", "none", "--to", "x"], "none"),
        (["export", "none"], "--to"),
        (["predict", "none", "x.png"], "x.png: there is no such file"),
        (["predict", "none", "."], ".: is a folder; name image files, such as ./*.jpg"),
        (["predict", "none", "x.png", "--top", "0"], "--top: 0"),
        (["predict", "none", "x" * 5000], "is no file"),
        (["export", "y" * 5000, "--to", "x"], "is no folder"),
        (["export", "none", "--to", "x" * 300], "cannot be written to"),
    ],
)
def test_bad_commands(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    assert named in refused(words, capsys)
    assert not list(tmp_path.iterdir())


def test_a_run_behind_skip_is_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("A7").mkdir()  # which is none
    told = parse(["audit", "--skip", "A7", "A8", str(tmp_path)])
    assert (told.run, told.skip) == ([tmp_path], ["A7", "A8"])
    with pytest.raises(UserError, match="required: run"):
        parse(["audit", "--skip", "A7", str(tmp_path / "missing")])


def test_traceback_is_shown_on_request(capsys):
    assert main(["run", "none.yaml", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_status_1_with_a_traceback(monkeypatch, capsys):
    def bug(*words):
        raise RuntimeError("oops")

    monkeypatch.setattr("kswap.cli._schema", bug)
    assert main(["schema"]) == 1
    assert "RuntimeError: oops" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["schema"], "interrupted; nothing is half-written, give the same command again"),
        (["run", "swap.yaml"], "interrupted; the same command goes on from the last checkpoint"),
    ],
)
def test_ctrl_c_says_what_the_same_command_does(monkeypatch, capsys, words, said):
    def stopped(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"kswap.cli._{words[0]}", stopped)
    assert main(words) == 130
    assert capsys.readouterr().err == f"kswap: {said}\n"


# ------------------------------------------------------------------------------------- good input
def test_run_evaluate_predict_export(values, tmp_path, capsys, old_images, new_images):
    assert main(run(values, tmp_path, "--seed", "3")) == 0
    said = capsys.readouterr().out
    assert "learned  magenta, yellow" in said
    assert "2-forget" in said
    folder = str(tmp_path / "run")
    assert json.loads((tmp_path / "run/results.json").read_text())["seed"] == 3
    assert main(["evaluate", folder]) == 0
    assert "equal to results.json" in capsys.readouterr().out.splitlines()
    images = [str(new_images / "yellow/000.png"), str(old_images / "green/000.png")]
    assert main(["predict", folder, *images, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == images
    assert all(line.count("%") == 2 for line in lines)
    assert main(["export", folder, "--to", str(tmp_path / "out"), "--drop-forgotten"]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert list(config["id2label"].values()) == [*OLD[1:], *NEW]
    assert not (tmp_path / "out/model.onnx").exists()  # was not asked for
    assert "exists" in refused(["export", folder, "--to", str(tmp_path / "out")], capsys)


def test_the_command_to_try_can_be_pasted(values, tmp_path, capsys):
    assert main(run(values, tmp_path, "--output", str(tmp_path / "birds for #1"))) == 0
    assert f"try: kswap predict '{tmp_path}/birds for #1' IMAGE" in capsys.readouterr().out


def test_what_no_stage_forgets_is_not_said_to_be_forgotten(values, tmp_path, capsys):
    assert main(run(values, tmp_path, "--order", "L")) == 0
    said = capsys.readouterr()
    assert "untouched red" in said.out.splitlines()
    assert "forgot " not in said.out
    assert "forget: order L has no stage that forgets; its classes are scored" in said.err
    assert json.loads((tmp_path / "run/model/config.json").read_text())["kswap"]["forgotten"] == []
    for page in ("README.md", "report.html"):
        text = (tmp_path / "run" / page).read_text()
        assert "To forget (no stage of order L did)" in text
        assert "Forgotten:" not in text
    export = ["export", str(tmp_path / "run"), "--to", str(tmp_path / "out"), "--drop-forgotten"]
    assert main(export) == 0
    labels = json.loads((tmp_path / "out/config.json").read_text())["id2label"]
    assert list(labels.values()) == [*OLD, *NEW]


def test_onnx_gives_the_runs_logits_and_dropped_rows_are_gone(values, tmp_path, old_images):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(run(values, tmp_path)) == 0
    for to, words in (("all", []), ("dropped", ["--drop-forgotten"])):
        assert (
            main(["export", str(tmp_path / "run"), "--to", str(tmp_path / to), "--onnx", *words])
            == 0
        )
    model, processor = kswap.load(tmp_path / "run")
    pixels = processor(kswap.data.read_image(old_images / "blue/000.png"), return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).logits
    inputs = {"pixel_values": pixels["pixel_values"].numpy()}
    for to, rows in (("all", range(6)), ("dropped", range(1, 6))):
        session = onnxruntime.InferenceSession(str(tmp_path / to / "model.onnx"))
        logits = torch.from_numpy(session.run(None, inputs)[0])
        assert torch.allclose(logits, expected[:, list(rows)], atol=1e-4)


def test_a_classifier_of_one_class_is_not_exported(values, tmp_path, capsys):
    values["forget"]["classes"] = list(OLD[1:])
    assert main(run(values, tmp_path, "--order", "F", "--stages.forget.max_steps", "1")) == 0
    words = ["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]
    said = refused([*words, "--drop-forgotten"], capsys)
    assert "3 of 4 classes" in said
    assert not (tmp_path / "out").exists()
    assert main(words) == 0


@pytest.mark.parametrize("preset", ["default", "retain-free"])
def test_the_keys_to_set_where_every_class_is_forgotten_are_named(preset, values, tmp_path, capsys):
    every_class_forgotten(values, tmp_path)
    values["preset"] = preset
    said = refused(run(values, tmp_path), capsys)
    fix = said.split("leave a class, or give ")[1].split()
    assert "--stages.forget.terms.forget.objective" in fix
    assert ("--stages.forget.terms.learn.objective" in fix) == (preset == "retain-free")
    assert main(run(values, tmp_path, *fix)) == 0


def test_marks_that_turn_text_round_are_shown_as_escapes(values, tmp_path, capsys):
    values["learn"]["rename"] = {"yellow": "yel\u202elow\u2066"}
    assert main(run(values, tmp_path)) == 0
    said = capsys.readouterr()
    card = (tmp_path / "run/README.md").read_text()
    assert "yel\\u202elow\\u2066" in said.out
    assert "yel\\\\u202elow\\\\u2066" in card  # Markdown shows one backslash
    assert not {"\u202e", "\u2066"} & set(said.out + said.err + card)


def test_a_run_that_fails_in_training_is_one_line(values, tmp_path, capsys):
    words = ["--stages.learn.optimiser.lr", "1e-40"]
    assert "never moved" in refused(run(values, tmp_path, *words), capsys)
    words = ["--adapter.rank", "1000000000000", "--output", str(tmp_path / "large")]
    assert "the memory is too small" in refused(run(values, tmp_path, *words), capsys)


def test_what_a_finished_run_is_used_for(values, tmp_path, capsys, new_images):
    assert main(run(values, tmp_path)) == 0
    folder, to, image = tmp_path / "run", tmp_path / "out", str(new_images / "yellow/000.png")
    assert main(["export", str(folder), "--to", str(to), "--drop-forgotten"]) == 0
    capsys.readouterr()
    for exported in (to, folder / "model"):  # as the help says, not only a run folder
        assert main(["predict", str(exported), image]) == 0
        assert "%" in capsys.readouterr().out
    said = refused(["export", str(folder), "--to", "/dev/null/x"], capsys)
    assert "--to: /dev/null/x cannot be written to" in said
    said = refused(["export", str(folder), "--to", str(folder / "model/x")], capsys)
    assert "is within the run" in said
    assert not (folder / "model/x").exists()
    assert "is a folder; name image files" in refused(["predict", str(to), str(to)], capsys)
    moved = folder.rename(tmp_path / "moved")
    said = refused(run(values, tmp_path, "--output", str(moved)), capsys)
    assert f"began as '{folder}' and was moved or copied; move it back" in said
    (to / "preprocessor_config.json").write_text("{}")
    assert "its image processor makes" in refused(["predict", str(to), image], capsys)


def test_names_that_are_not_utf8_are_shown_and_saved(values, tmp_path, capsys, old_images):
    images = shutil.copytree(old_images, tmp_path / "images")
    Path(os.fsdecode(os.fsencode(images) + b"/red/\xff.png")).write_text("no image")
    values["forget"]["data"] = str(images)
    values["data"] = {"on_bad_image": "skip"}
    assert main(run(values, tmp_path)) == 0
    assert "\\udcff.png" in capsys.readouterr().err
    assert "\\\\udcff.png" in (tmp_path / "run/results.json").read_text()


def test_control_characters_do_not_reach_the_terminal(values, tmp_path, capsys):
    images = only(tmp_path / "x", "yellow")
    (images / "yellow/\x1b[31m.png").write_text("no image")
    values["learn"]["data"] = str(images)
    assert "\\x1b[31m.png" in refused(run(values, tmp_path), capsys)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_nobody_takes():
    def schema(redirect: str) -> tuple[int, str]:
        words = f"{sys.executable} -m kswap schema {redirect}"
        done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
        return done.returncode, done.stderr

    status, said = schema("> /dev/full")
    assert status == 2
    assert said.startswith("kswap: error: standard output cannot be written to")
    assert len(said.splitlines()) == 1
    assert schema(">&-") == (0, "")
    assert schema("2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}")[0] in (0, 141)


def test_schema_is_json(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "SwapConfig"


def test_help_and_import_load_nothing_heavy():
    code = """
import sys
import kswap
from kswap.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
kswap.__version__
heavy = {"torch", "transformers", "datasets", "peft", "numpy", "PIL", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: kswap" in done.stdout


def test_a_mistake_in_the_config_is_said_before_anything_heavy_is_loaded(tmp_path):
    code = f"""
import sys
from kswap.cli import main
(open({str(tmp_path / "swap.yaml")!r}, "w")).write("model: m\\norder: LXF")
assert main(["run", {str(tmp_path / "swap.yaml")!r}]) == 2
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/1").exists(), reason="needs /proc")
def test_output_that_cannot_be_written(values, tmp_path, capsys):
    values["output"] = "/proc/kswap/run"
    assert "cannot be written to" in refused(run(values, tmp_path), capsys)
