import json

import pytest

from configs import v2_ablation
from mnv2 import status
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import append_line, sole_writer, write_json, write_text
from mnv2.sweeps.status import statuses

ARMS = (("linear", {}), ("relu6", {"model.bottleneck": "relu6"}), ("t_1", {"model.expansion": 1.0}))


@pytest.fixture
def workdir(tmp_path):
    """One run done, one stopped, one failed, the second seeds waiting."""
    config = v2_ablation.get_config("quick")
    config.arms, config.seeds = ARMS, 2
    steps = {arm: 30 for arm, _ in ARMS}
    write_json(
        tmp_path / "sweep.json", {"config": config.to_dict(), "environment": {}, "steps": steps}
    )
    write_json(tmp_path / "linear/0/result.json", {"test": {"accuracy": 0.8512}})
    (tmp_path / "relu6/0").mkdir(parents=True)
    for line in (
        {"step": 10, "train/loss": 1.0, "train/images_per_second": 64.0},
        {"step": 10, "validation/loss": 1.0},
    ):
        append_line(tmp_path / "relu6/0/metrics.jsonl", json.dumps(line))
    with (tmp_path / "relu6/0/metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "tra')  # cut short
    write_text(tmp_path / "t_1/0/failure.txt", "Traceback ...\nOSError: disk full\n")
    return tmp_path


def test_every_run_is_told_of(workdir):
    found = {row.name: (row.state, row.detail) for row in statuses(workdir)}
    assert found == {
        "linear/0": ("done", "85.12 %"),
        "linear/1": ("waiting", ""),
        "relu6/0": ("stopped", "step 10 of 30"),
        "relu6/1": ("waiting", ""),
        "t_1/0": ("failed", "OSError: disk full"),
        "t_1/1": ("waiting", ""),
    }


def test_a_run_in_a_process_is_running_and_says_how_long_still(workdir, capsys):
    with sole_writer(workdir / "relu6/0"):
        status.show(workdir)
    printed = capsys.readouterr().out
    # 20 steps of 128 images at 64 a second.
    assert "relu6/0   running  step 10 of 30, 64 images/s, 40 s left (process " in printed
    assert printed.endswith("1 done, 1 running, 1 failed, 3 waiting\n")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the --workdir of any runs"):
        status.show(tmp_path)
