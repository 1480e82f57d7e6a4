from experiments.speed import recipes
from experiments.speed.recipes import Recipe


def test_what_was_measured_before_is_not_measured_again(tmp_path, monkeypatch):
    tried = []

    def measure(preset, *_):
        tried.append(preset)
        return Recipe(preset, 176, 224, 31.7, 3484.0, 0.5, 1000, 163.5, 170.0)

    monkeypatch.setattr(recipes, "measure", measure)
    monkeypatch.setattr(recipes.imagenet_shaped, "prepare", lambda _: None)
    for presets in (["timm"], ["timm", "paper"]):
        arguments = ["recipes", "--presets", *presets, "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", arguments)
        recipes.main()
    assert tried == ["timm", "paper"]
    lines = (tmp_path / "recipes.md").read_text().splitlines()
    assert lines[2:] == [f"| {name} | 176 | 224 | 31.7 | 3,484 | 0 | 1000 |" for name in tried]


def test_the_command_keeps_the_sizes_of_a_preset_and_makes_its_batch_smaller(tmp_path):
    command = recipes.command("torchvision_v2", tmp_path, tmp_path / "runs")
    assert "configs/imagenet.py:torchvision_v2" in command
    assert "--config.batch_size=32" in command
    assert not any("image_size" in one for one in command)
