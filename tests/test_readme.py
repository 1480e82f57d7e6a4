"""What the README and the pages in docs/ say is true."""

import csv
import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from mnv2.sweeps.plan import named, plan, with_arms
from tests.training.test_finetune import weights as weights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
COMMANDS = [
    shlex.split(line, comments=True)
    for page in (README, *PAGES.values())
    for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_exists(command):
    match command:
        case ["make", target, *variables]:
            makefile = (ROOT / "Makefile").read_text()
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)
            for variable in variables:
                name, value = variable.split("=")
                assert re.search(rf"^{name} \?=", makefile, re.MULTILINE)
                assert value in makefile
        case ["python", "-m", module, *_] | [_, "python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["pip", "install", "-r", file] | ["pip", "install", "--no-deps", "-r", file]:
            assert (ROOT / file).exists()
        case ["pip", "install", "."]:
            assert (ROOT / "pyproject.toml").exists()
        case ["pip", "install", package] if package.startswith(".["):
            extra = package.removeprefix(".[").removesuffix("]")
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
        case ["gcloud" | "xprof", *_] | ["pip", "install", "xprof"]:
            pass  # others' programs
        case _:
            assert command[:2] == ["tensorboard", "--logdir"]


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if {"mnv2.main", "mnv2.submit"} & {*c}],
    ids=lambda c: " ".join(c[3:]),
)
def test_every_run_can_start(command, tmp_path, fashion_mnist, weights, monkeypatch):
    monkeypatch.setattr("sys.argv", command[2:])  # where ml_collections looks for overrides
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    flags.DEFINE_list("only", [], "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(command[2:], known_only=True)  # the other flags are tested with the commands
    if "weights" in config.value:  # what a reader has made, and PATH
        given = (config.value.weights, config.value.data.name)
        assert given in (
            ("runs/mobilenet_v2.pth", "folder:PATH"),
            ("runs/v2_ablation/linear/0", "fashion_mnist"),
        )
        config.value.weights, config.value.data.name = str(weights), "fashion_mnist"
    if config.value.data.name in (
        "cifar10",
        "imagenet2012",
        "folder:~/imagenet_256",
    ):  # which tests do not download
        config.value.data.name = "fashion_mnist"
        config.value.data.normalization = "half"  # its pictures are gray
        config.value.data.train = ""
    if callable(config.value.arms):  # whose search for widths is tested with the configs
        names = config.value.arms.func.__globals__
        monkeypatch.setitem(names, "_width_of_equal_cost", lambda config, arm, start: start)
    assert named(plan(with_arms(config.value), tmp_path), values.only)


def test_the_python_example_prints_what_its_comments_say():
    *_, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    shorter = code.replace("width=1.0,", "repeats=(1, 1, 0, 0, 0, 0, 0),")  # all blocks take 12 s
    assert shorter != code
    exec(shorter.replace("(1, 224, 224, 3)", "(1, 32, 32, 3)", 1), names)
    names["model"] = names["create_model"]("mobilenet_v2")
    checked = re.findall(r"^(complexity\.\S+\(.*\))\s+# ([\d_]+)$", code, re.MULTILINE)
    assert len(checked) == 2
    for expression, value in checked:
        assert eval(expression, names) == int(value)
    assert {"stem", "block_1", "block_1_expanded"} <= names["tensors"].keys()


def test_the_verbs_do_in_python_what_the_commands_do(tmp_path, few_test_pictures):
    verbs, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(verbs.replace("runs/network.onnx", str(tmp_path / "network.onnx")), names)
    assert [path.exists() for path in names["files"].values()] == [True]
    assert names["results"]["accuracy"] > 0.8  # of all pictures: test_kept_weights.py
    assert names["results"]["examples"] == 96
    assert len(names["found"]) == 4
    for path, shares in names["found"]:
        assert len(shares) == 3, path
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_the_example_of_weights_runs(weights, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["weights.md"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    save = 'pretrained.save(loaded, "out.h5", names="keras")'
    assert save in code  # the small network of this test is not one of Keras
    images = np.zeros((2, 224, 224, 3), np.uint8)
    exec(code.replace('"FILE"', repr(weights)).replace(save, ""), {"images": images})


def test_the_results_are_those_of_the_report():
    def rows(text, start):
        lines = [line for line in text.splitlines() if line.startswith(start)]
        return [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines]

    measured = {row[0]: row for row in rows(PAGES["v2_ablation.md"], "| ")}
    shown = [row for row in rows(README, "| `") if row[0] in measured]
    assert len(shown) == 9
    for arm, _, params, multiply_adds, accuracy, difference in shown:
        assert [params, multiply_adds, accuracy, difference] == measured[arm][1:5], arm


def test_the_speeds_are_those_that_were_measured():
    with (ROOT / "docs" / "throughput.csv").open(encoding="utf-8") as file:
        speeds = {
            (row["mode"], row["size"], row["batch"], row["framework"]): row["images_per_second"]
            for row in csv.DictReader(file)
            if row["settings"] == "as users run them"
        }
    for mode, size, batch in (
        ("train", "224", "32"),
        ("train", "32", "128"),
        ("infer", "224", "32"),
    ):
        values = [
            float(speeds[mode, size, batch, framework])
            for framework in ("mnv2", "PyTorch", "torch.compile", "Keras", "Flax")
        ]
        cells = " | ".join(f"{x:,.0f}" if x >= 100 else f"{x:.1f}" for x in values)
        assert f", {size} px, batch {batch} | {cells} |" in README


def test_every_link_leads_to_a_file_and_to_a_heading():
    def anchors(page):
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}

    links = [
        (page.parent / path if path else page, anchor)
        for pattern in ("*.md", "docs/*.md", "experiments/*/*.md", "weights/*/*.md")
        for page in ROOT.glob(pattern)
        for path, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)]+))?\)", page.read_text())
    ]
    assert len(links) > 50
    for path, anchor in links:
        assert path.exists(), path
        assert not anchor or anchor in anchors(path), f"{path}#{anchor}"
