"""Costs are measured once, until the parameters or the code change."""

import types

from ummcsgm.evaluation import evaluate
from ummcsgm.study import costs


def test_costs_are_measured_again_if_parameters_or_code_changed(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(costs, "_seconds_per_slice", lambda *arguments: 0.5)
    monkeypatch.setattr(costs, "training_seconds", lambda folder: 3.0)
    monkeypatch.setattr(evaluate, "read_subject", lambda *arguments: None)
    subjects = tuple(
        types.SimpleNamespace(name=name, files={}, mask=None, segmentation=None)
        for name in ("first", "second")
    )
    options = types.SimpleNamespace(microbatch=4)
    spec = types.SimpleNamespace(subjects=subjects, options=options, space=None, patterns=None)

    def measure(digest):
        def count_gflop():
            counted.append(digest)
            return float(len(counted))

        sizes = types.SimpleNamespace(
            parameters=7, images_seen=16, steps=4, count_gflop=count_gflop
        )
        method = types.SimpleNamespace(name="method", digest=digest, costs=sizes)
        parts = {"costs": costs.costs_part(tmp_path, spec, method)}
        results = evaluate.evaluate_subjects(spec, parts)["costs"]
        return costs.method_costs(tmp_path, method, results)["gflop"]

    assert [measure("a"), measure("a"), measure("b")] == [1, 1, 2]
    monkeypatch.setattr(evaluate, "code_digest", lambda: "other code")
    assert [measure("b"), measure("b")] == [3, 3]
