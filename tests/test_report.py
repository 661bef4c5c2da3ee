"""The page and the model card of a run, drawn from numbers alone; what is hostile does no harm."""

from __future__ import annotations

import html.parser
import importlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import RepoCard
from report_samples import CLASSES, LABELS, write_run
from tiny_runs import LONG, QUOTES, SCRIPT, TASKS

import kswap
from kswap.cli import main
from kswap.report.card import card
from kswap.report.page import draw_report
from kswap.report.table import rows, show

VOID = {"meta", "link", "img", "br", "hr", "input", "line", "circle", "polyline"}


class Outline(html.parser.HTMLParser):
    """What a page is made of: tags with attributes, headings, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module", params=TASKS)
def drawn(request, tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("report") / request.param, request.param)
    return draw_report(folder)


@pytest.fixture(scope="module")
def outline(drawn):
    return Outline(drawn.read_text())


def test_it_is_one_small_file_that_asks_for_nothing(drawn, outline):
    page = drawn.read_text()
    assert len(page) < 5_000_000
    tags = {tag for tag, _ in outline.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in outline.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_names_are_text_on_it_and_nothing_else(outline):
    text = "".join(outline.text)
    for name in (SCRIPT, QUOTES, LONG):
        assert name in text
    images = [a for tag, a in outline.tags if tag == "img"]
    assert images
    assert all(a["src"].startswith("data:image/jpeg;base64,") and a["alt"] for a in images)


def test_headings_go_down_one_level_at_a_time_and_tables_say_what_is_what(outline):
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    cells = [attributes for tag, attributes in outline.tags if tag == "th"]
    assert cells
    assert all(a.get("scope") in ("row", "col") for a in cells)
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("caption") == tags.count("table")
    ids = [a["id"] for _, a in outline.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in outline.tags:
        if tag == "a":
            assert attributes["href"][1:] in ids


def test_its_first_screen_has_scores_verdict_and_both_warnings(outline):
    text = " ".join("".join(outline.text).split())
    first = text[: text.index("Skip") + 12_000]
    for said in ("81.0", "Stopped by A5", "reversible by design", "undo a merged swap", "87.0"):
        assert said in first, said
    assert "lies near a forgotten one" in text  # the audit's own warnings


def test_audit_cells_charts_and_analyses_are_shown(outline):
    text = " ".join("".join(outline.text).split())
    assert "0.0421 [0.0310, 0.0550] n = 3" in text
    assert "not available" in text
    assert "N = 1 model shows no epsilon." in text
    assert "Residual by layer" in text
    assert "Norm of each block" in text
    labels = [a.get("aria-label") for tag, a in outline.tags if tag == "svg" and a.get("role")]
    assert len(labels) == len(set(labels)) == 6  # scores, three terms, one analysis, one audit


def test_the_command_draws_it_again_in_a_folder_with_numbers_only(drawn, tmp_path, capsys):
    for part in ("results.json", "events.jsonl", "arrays"):
        source = drawn.parent / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == drawn.read_text()
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {f"{r}.png" for r in CLASSES}
    assert (tmp_path / "README.md").read_text() == (drawn.parent / "README.md").read_text()


def test_neither_torch_nor_transformers_is_imported_for_it(tmp_path):
    write_run(tmp_path, "classification")
    code = (
        "import sys, kswap; kswap.draw_report(sys.argv[1]); "
        "assert not {'torch', 'transformers'} & set(sys.modules); "
        "import kswap.report; assert kswap.report.__name__ == 'kswap.report'"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# ------------------------------------------------------------------------------- what may be absent
def test_without_audit_arrays_and_events_it_says_so(tmp_path):
    write_run(tmp_path, "classification", audit=False)
    shutil.rmtree(tmp_path / "arrays")
    (tmp_path / "events.jsonl").unlink()
    results = json.loads((tmp_path / "results.json").read_text())
    for key in ("base", "notes", "images", "order", "preset"):
        results.pop(key, None)
    results["stages"][0]["scores"]["retain"] = results["stages"][-1]["scores"]["retain"] = None
    results |= {"order": "LF", "preset": "default"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = " ".join("".join(Outline(draw_report(tmp_path).read_text()).text).split())
    assert "Not audited yet: run kswap audit RUN" in text
    assert "this run kept no pictures" in text
    assert "there is no events.jsonl" in text
    assert "no test images" in text
    assert not (tmp_path / "figures").exists()


def test_nothing_to_forget_and_many_classes(tmp_path):
    classes = {
        "learn": [], "forget": [], "retain": [f"class {k} " + LONG for k in range(300)],
    }  # fmt: skip
    write_run(tmp_path, "classification", classes=classes, audit=False, examples=3)
    page = draw_report(tmp_path).read_text()
    assert len(page) < 5_000_000
    assert "Nothing was to be forgotten" in page
    assert "276 classes that changed less" in page
    assert (
        "240 classes that changed less are in results.json" in (tmp_path / "README.md").read_text()
    )


@pytest.mark.slow
def test_many_pictures_get_smaller_so_that_the_page_does_not(tmp_path):
    write_run(tmp_path, "detection", examples=30)
    assert draw_report(tmp_path).stat().st_size < 5_000_000


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("events.jsonl", b'{"stage": "1-learn"}\n', "line 1 cannot be read"),
        ("events.jsonl", b"\xff\n", "line 1 cannot be read"),
        ("arrays/analysis-x.json", b"{}", "analysis-x.json: cannot be read"),
        (
            "arrays/analysis-x.json",
            b'[{"title": "t", "x": [1], "series": {"a": []}}]',
            "as long as x",
        ),
        ("arrays/examples.json", b"[]", "examples.json: cannot be read"),
        ("results.json", b"{}", "results.json: cannot be read"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, capsys, file, content, said):
    write_run(tmp_path, "classification")
    (tmp_path / file).write_bytes(content)
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_results_that_lack_a_part_are_one_line(tmp_path, capsys):
    write_run(tmp_path, "classification")
    results = json.loads((tmp_path / "results.json").read_text())
    del results["trainable_parameters"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path)]) == 2
    assert "lacks what a report shows" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("stages", -1, "scores", "learn"), "0.5", "the score of learn is '0.5', not a finite"),
        (("stages", 0, "scores", "retain"), float("nan"), "the score of retain is nan"),
        (("stages", 0, "scores", "retain"), True, "the score of retain is True"),
        (("stages", 1, "per_class", "ship"), float("inf"), "the score of class 'ship' is inf"),
        (("seconds", "total"), "81", "seconds of total is '81'"),
        (("score_name",), "foo", "score_name 'foo' is none of top1, miou, map"),
        (("task",), "poetry", "task 'poetry' is none of classification, segmentation, detection"),
        (("task",), ["x"], "task ['x'] is none of"),
        (("seconds",), [1], "results.json: cannot be read"),
    ],
)
def test_numbers_that_were_changed_by_hand_are_refused(tmp_path, capsys, path, value, said):
    write_run(tmp_path, "classification")
    results = here = json.loads((tmp_path / "results.json").read_text())
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("error", [ValueError("odd"), IndexError("odd"), ZeroDivisionError("odd")])
def test_whatever_content_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch, error):
    def fail(*args):
        raise error

    write_run(tmp_path, "classification")
    monkeypatch.setattr("kswap.report.page.write_report", fail)
    assert main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{type(error).__name__}: odd); run the same swap again" in line


def test_the_known_scores_and_tasks_are_those_of_the_package():
    from kswap.report import card
    from kswap.run_folder import SCORE_NAMES
    from kswap.settings import TASKS
    from kswap.tasks import find

    assert tuple(find(task).score_name for task in TASKS) == SCORE_NAMES == tuple(card._SCORES)


@pytest.mark.parametrize("command", ["report", "evaluate"])
def test_a_file_is_no_run_folder(tmp_path, capsys, command):
    (tmp_path / "results.json").write_text("{}")
    assert main([command, str(tmp_path / "results.json")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "results.json: is a file; name a run folder" in line
    assert "delete" not in line


@pytest.mark.parametrize("command", ["report", "evaluate", "audit"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied"), "(Permission denied); correct the permissions"),
        (OSError(5, "Input/output error"), "(Input/output error); mend the disk"),
    ],
)
def test_results_that_cannot_be_read_are_not_to_be_deleted(
    tmp_path, capsys, monkeypatch, command, error, said
):
    write_run(tmp_path, "classification")
    read_text = Path.read_text

    def refuse(path, *args, **options):  # root reads what it likes: permissions alone do not do it
        if path.name == "results.json":
            raise error
        return read_text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert main([command, str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{tmp_path / 'results.json'}: cannot be read {said}" in line
    assert "delete" not in line


def test_audits_on_a_terminal_turn_nothing_round(tmp_path, capsys):
    from kswap.report.audit_tables import show_audit

    write_run(tmp_path, "classification")
    answer = json.loads((tmp_path / "results.json").read_text())["audit"]
    answer["warnings"] = ["class \u202e[b]x\x1b"]
    show_audit(answer)
    said = capsys.readouterr().out
    assert "class \\u202e[b]x\\x1b" in said
    assert not {"\u202e", "\x1b"} & set(said)


# -------------------------------------------------------------------------------------- model card
@pytest.mark.parametrize("columns", ["0", "1", "20", "80"])
def test_a_narrow_terminal_leaves_no_digit_out(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    results = json.loads((write_run(tmp_path, "classification") / "results.json").read_text())
    show(results)
    lines = capsys.readouterr().out.splitlines()
    assert rows(results)
    for cells in rows(results):
        assert any(all(cell in line for cell in cells) for line in lines)


def test_the_card_is_one_of_the_hub(drawn):
    text = (drawn.parent / "README.md").read_text()
    metadata = RepoCard(text).data.to_dict()
    assert metadata["library_name"] == "transformers"
    assert metadata["license"] == "apache-2.0"
    assert "base_model" not in metadata  # this sample's name is no hub id
    values = {r["dataset"]["type"]: r["metrics"][0] for r in metadata["model-index"][0]["results"]}
    assert values["kswap-learn"]["value"] == 0.87
    assert set(values) == {"kswap-learn", "kswap-forget", "kswap-retain"}
    assert metadata["metrics"] == [values["kswap-learn"]["type"]]
    body = text.split("---", 2)[2]
    assert "<script>" not in body
    assert "**output\\-consistent**" in body or "**output-consistent**" in body
    assert "reversible by design" in body


@pytest.mark.parametrize(
    ("model", "named"),
    [("facebook/dinov2-small", True), ("/home/me/secret/base", False), ("ViT in memory", False)],
)
def test_only_a_hub_id_is_the_base_model_and_no_path_is_told(tmp_path, model, named):
    write_run(tmp_path, "detection", audit=False)
    results = json.loads((tmp_path / "results.json").read_text())
    results["base"] = {"model": model, "license": None}
    text = card(results)
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata.get("base_model") == (model if named else None)
    assert "license" not in metadata
    assert "/home/me" not in text
    assert "Not audited yet: run `kswap audit RUN`" in text


def test_a_licence_that_the_hub_does_not_know_is_named(tmp_path):
    write_run(tmp_path, "classification")
    results = json.loads((tmp_path / "results.json").read_text())
    said = {"license": "other", "license_name": "own", "license_link": "https://a.example/b"}
    results["base"] = {"model": "hub/base", **said}
    metadata = RepoCard(card(results)).data.to_dict()
    assert {key: metadata[key] for key in said} == said


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/runs/first/model", "first"),
        ("/runs/first", "first"),
        ("/model", "model"),
        ("hub/model", "hub/model"),
    ],
)
def test_a_base_that_is_a_runs_model_has_the_name_of_the_run(tmp_path, model, name):
    write_run(tmp_path, "classification")
    results = json.loads((tmp_path / "results.json").read_text())
    results["base"] = {"model": model, "license": None}
    text = card(results)
    assert f"# {name}, swapped" in text.splitlines()
    index = yaml.safe_load(text.split("---")[1])["model-index"]
    assert [one["name"] for one in index] == [f"{name}, swapped"]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ([], "ship"),
        (["ship"], "ship"),
        (["owl", "ship", "<b>*"], "ship (by earlier swaps: owl, &lt;b&gt;\\*)"),
    ],
)
def test_the_card_lists_what_earlier_swaps_forgot_once(tmp_path, before, said):
    write_run(tmp_path, "classification", classes=CLASSES | {"learn": [QUOTES], "forget": ["ship"]})
    results = json.loads((tmp_path / "results.json").read_text())
    results["base"]["forgotten"] = before
    assert f"* **Forgotten:** {said}" in card(results).splitlines()


def test_every_word_of_the_card_is_escaped(tmp_path):
    write_run(tmp_path, "classification")
    results = json.loads((tmp_path / "results.json").read_text())
    results |= dict.fromkeys(("kswap_version", "order", "preset", "seed"), "<b>| x")
    results["stages"][0]["name"] = "<b>| x"
    results["images"]["<b>| x"] = {"train": "<b>| x"}
    text = card(results)
    assert "<b>" not in text
    assert text.count(r"&lt;b&gt;\| x") == 8


def test_the_public_name_does_not_take_the_packages_place():
    assert kswap.draw_report is draw_report
    assert "draw_report" in kswap.__all__
    assert importlib.import_module("kswap.report").__name__ == "kswap.report"
    assert kswap.report is sys.modules["kswap.report"]


def test_labels_of_the_sample_are_those_of_its_classes():
    assert set(LABELS.values()) == {name for members in CLASSES.values() for name in members}
