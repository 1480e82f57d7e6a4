from experiments.speed.device import Row, table_of
from experiments.speed.frameworks.tasks import Task


def _row(framework, speed, dtype="float32"):
    task = Task("train", size=224, batch=256, dtype=dtype)
    return Row(task, framework, speed, speed, speed)


def test_the_table_compares_frameworks_at_one_task():
    rows = [_row("mnv2", 300.0), _row("Flax", 6.5), _row("mnv2", 400.0, "bfloat16")]
    table = table_of(rows)
    assert table.header == ["images/s", "mnv2", "Flax", "mnv2 to Flax"]
    assert table.lines == [
        ["train V2, float32, 224 px, batch 256", "300", "6.5", "46.15"],
        ["train V2, bfloat16, 224 px, batch 256", "400", "", ""],
    ]
    columns = rows[0].record()
    assert (columns["network"], columns["pixels"], columns["framework"]) == (
        *("mobilenet_v2", 224, "mnv2"),
    )
