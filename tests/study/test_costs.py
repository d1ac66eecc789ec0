"""Costs are measured once, until the parameters or the code change."""

import types

from ummcsgm.study import costs


def test_costs_are_measured_again_if_parameters_or_code_changed(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(costs, "_seconds_per_slice", lambda *arguments: 0.5)
    monkeypatch.setattr(costs, "training_seconds", lambda folder: 3.0)

    def measure(digest):
        def count_gflop():
            counted.append(digest)
            return float(len(counted))

        sizes = types.SimpleNamespace(
            parameters=7, images_seen=16, steps=4, count_gflop=count_gflop
        )
        method = types.SimpleNamespace(digest=digest, costs=sizes)
        return costs.method_costs(tmp_path, method, lambda: None, 4)["gflop"]

    assert [measure("a"), measure("a"), measure("b")] == [1, 1, 2]
    monkeypatch.setattr(costs, "code_digest", lambda: "other code", raising=False)
    assert [measure("b"), measure("b")] == [3, 3]
