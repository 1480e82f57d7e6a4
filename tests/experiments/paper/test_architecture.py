from experiments.paper import architecture
from mnv2.analysis import complexity


def test_only_the_final_version_fits_in_each_question():
    by_question: dict[str, list[bool]] = {}
    for question, _, model in architecture.readings():
        madds = complexity.multiply_adds(model, architecture.IMAGE) / 1e6
        weights = complexity.weights(model, architecture.IMAGE) / 1e6
        by_question.setdefault(question, []).append(architecture.fits(madds, weights))
    softmax = by_question.pop("softmax")
    assert softmax == [True, True]  # softmax costs nothing, so the counts cannot decide
    assert list(by_question) == ["blocks", "stride 2", "last row"]
    for fits in by_question.values():
        assert fits[0]
        assert not any(fits[1:])
