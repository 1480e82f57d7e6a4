"""The changes of docs/change.md apply, and training with all of them at once does what they say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "change.md").read_text()
PARTS = re.findall(r"^## ([^\n]*): (\d) files?\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
CHANGES = [
    change for _, _, part in PARTS for change in re.findall(r"```diff\n(.*?)```", part, re.S)
]
# The arms as the page has them, of a network that compiles in seconds. Only the process that trains
# calls `arms`.
TINY = """
from configs import v2_ablation

def check_operations(text):
    import jax, jax.numpy as jnp
    from mnv2 import preprocess
    from mnv2.preprocess.device import augment
    images, labels = jnp.full((2, 4, 4, 1), 5, jnp.uint8), jnp.array([0, 9])
    rows = dict.fromkeys(("index", "epoch", "position"), jnp.arange(2))
    images, labels = augment(
        preprocess.parse(text, "train"), images, labels, jax.random.key(0), rows, 10
    )
    assert (images == 250).all() and labels.tolist() == [1, 0], (images, labels)

def get_config(preset):
    config = v2_ablation.get_config(preset)
    of_preset = config.arms

    def arms(config):
        check_operations(config.data.train)
        of_preset(config)
        with config.model.unlocked():
            config.model.width, config.model.repeats = 0.1, (1, 0, 0, 0, 0, 0, 0)

    config.arms = arms
    config.duration, config.optimization.warmup, config.log_every = "2 steps", "1 steps", 1
    config.batch_size, config.data.validation, config.final_split = 16, 64, "validation"
    config.eval_batch_size = 64
    return config
"""


def test_each_change_has_the_number_of_files_that_the_page_says():
    names = ["An arm", "A metric", "An augmentation", "Label noise, fixed for each example"]
    assert [name for name, _, _ in PARTS] == [*names, "Another optimiser"]
    for _, count, part in PARTS:
        assert len(re.findall(r"^\+\+\+ b/", part, re.MULTILINE)) == int(count)


@pytest.fixture
def changed(tmp_path):
    """A copy of the code with all changes of the page."""
    for folder in ("mnv2", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for change in CHANGES:
        subprocess.run(["git", "apply", "-"], input=change, text=True, cwd=tmp_path, check=True)
    (tmp_path / "configs" / "tiny.py").write_text(TINY)
    return tmp_path


def test_training_with_the_changes_does_what_they_say(changed, fashion_mnist):
    (command,) = re.findall(r"```sh\n(.*)\n```", PARTS[-1][-1])
    words = shlex.split(command)
    optimizer = words[words.index("--config.optimization.optimizer") + 1]
    words = [
        *(sys.executable, "-m", "mnv2.main", "--config", "configs/tiny.py:hour", "--noreport"),
        *("--only", "dropout/0", "--parallel", "1", "--workdir", "runs"),
        *("--config.optimization.optimizer", optimizer),
        *("--config.data.train", "invert(1.0)|pair_noise(1.0)"),
    ]
    environment = {
        **{**os.environ, "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": ""},
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # one device compiles faster
    }
    done = subprocess.run(
        words, cwd=changed, env=environment, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    folder = changed / "runs" / "dropout" / "0"
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["dropout"] == 0.2
    assert config["optimization"]["optimizer"] == "adamw(b2=0.95)"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 0.1 < lines[0]["train/confidence"] < 1
    assert 0.1 < json.loads((folder / "result.json").read_text())["validation"]["confidence"] < 1
