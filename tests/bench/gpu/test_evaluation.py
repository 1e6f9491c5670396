from tiny_gpu import TINY

from bench.gpu import evaluation


def test_the_validation_pass_is_timed(no_compiler, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCHES", 2)
    ((_, figures),) = evaluation.rows("validation", TINY)
    assert figures["times_the_network"] > 0 and figures["pages_per_second"] > 0
