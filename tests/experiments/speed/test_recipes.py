from experiments.speed import recipes
from experiments.speed.recipes import Recipe


def test_what_was_measured_before_is_not_measured_again(tmp_path, monkeypatch, fashion_mnist):
    tried = []

    def measure(preset, *_):
        tried.append(preset)
        return Recipe(preset, 176, 224, 31.7, 3484.0, 0.5, 1000, 163.5, 170.0)

    monkeypatch.setattr(recipes, "measure", measure)
    monkeypatch.setattr(recipes, "write_resized", lambda *_: None)
    monkeypatch.setattr(recipes.data, "open_dataset", lambda _: fashion_mnist)
    first = list(recipes.measured(["timm"], fashion_mnist, tmp_path, tmp_path))
    both = list(recipes.measured(["timm", "paper"], fashion_mnist, tmp_path, tmp_path))
    assert tried == ["timm", "paper"]
    assert both[0] == first[0] == measure("timm")


def test_the_command_keeps_the_sizes_of_a_preset_and_makes_its_batch_smaller(tmp_path):
    command = recipes.command("torchvision_v2", tmp_path, tmp_path / "runs")
    assert "configs/imagenet.py:torchvision_v2" in command
    assert "--config.batch_size=32" in command
    assert not any("image_size" in one for one in command)
