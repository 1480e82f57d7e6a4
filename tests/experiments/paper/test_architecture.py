from experiments.paper import architecture


def test_only_the_final_version_fits_in_each_question():
    verdicts: dict[str, list[str]] = {}
    for reading, _, _, fits in architecture.table().lines:
        verdicts.setdefault(reading.partition(":")[0], []).append(fits)
    softmax = verdicts.pop("softmax")
    assert softmax == ["yes", "yes"]  # softmax costs nothing, so the counts cannot decide
    assert list(verdicts) == ["blocks", "stride 2", "last row"]
    for first, *others in verdicts.values():
        assert first == "yes"
        assert set(others) == {"no"}
