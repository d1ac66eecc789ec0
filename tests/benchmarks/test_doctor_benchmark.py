"""The doctor's benchmark times a subject that it finds sound."""

import json
import sys
import time

from ummcsgm.benchmarks import doctor


def test_a_sound_subject_is_examined_in_every_repeat(monkeypatch, capsys):
    flags = ["--shape", "48", "48", "30", "--repeats", "3"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    examine, calls, findings = doctor.examine_subject, [], []

    def examine_slowly(subject, modalities):
        calls.append((subject.name, tuple(subject.files)))
        time.sleep(0.3)
        if len(calls) == 1:  # examining takes longer than timing it
            findings.extend(examine(subject, modalities))
        return findings

    monkeypatch.setattr(doctor, "examine_subject", examine_slowly)
    doctor.main()
    report = json.loads(capsys.readouterr().out)
    assert len(calls) == len(report["seconds"]) == 3 and len(set(calls)) == 1
    assert sorted(calls[0][1]) == sorted(doctor.MODALITIES)
    assert report["shape"] == [48, 48, 30] and report["findings"] == 0
    assert report["median_seconds"] == sorted(report["seconds"])[1]
    assert 0.3 <= min(report["seconds"]) and max(report["seconds"]) < 60
