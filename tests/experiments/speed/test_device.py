from experiments.speed.device import Row, write_table


def _row(framework, speed, dtype="float32"):
    return Row("a chip", "train", "mobilenet_v2", dtype, 224, 256, framework, speed, speed, speed,
               1.0, 0, "jax 1", "c")  # fmt: skip


def test_the_table_compares_frameworks_at_one_task(tmp_path):
    rows = [_row("mnv2", 300.0), _row("Flax", 200.0), _row("mnv2", 400.0, "bfloat16")]
    write_table(rows, tmp_path)
    table = (tmp_path / "device.md").read_text().splitlines()
    assert table[0] == "| images/s | mnv2 | Flax | mnv2 to Flax |"
    assert table[2] == "| train V2, float32, 224 px, batch 256 | 300 | 200 | 1.50 |"
    assert table[3] == "| train V2, bfloat16, 224 px, batch 256 | 400 |  |  |"
