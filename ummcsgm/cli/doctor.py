"""The doctor's command: findings on a folder of scans, as a table or as JSON."""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib

from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.layouts.known import named_layouts
from ummcsgm.data.layouts.layout import Layout
from ummcsgm.qc.cohort_checks import check_search
from ummcsgm.qc.examine import examine_cohort
from ummcsgm.qc.findings import Finding
from ummcsgm.types import Config, InputError
from ummcsgm.utils.progress import print_table, progress_bar


def run_doctor(config: Config | None, source: str | None, as_json: bool) -> bool:
    """Prints what is wrong with the scans in `source`; returns whether a run can use them.

    With a `config` they must fit it. Without, every layout and modality is accepted, and
    JAX is not imported.

    Raises:
        InputError: there is no such folder, or no subject of a known layout in it.
    """
    if not source:
        raise InputError("--input is missing: name a folder of subjects.")
    layouts, settings, processes = named_layouts(), None, os.cpu_count()
    if config is not None:
        from ummcsgm.config import build_data

        layouts, settings = build_data.build_layouts(config), build_data.build_settings(config)
        processes = build_data.build_processes(config)
    found = find_subjects(pathlib.Path(source), layouts)
    layout, subjects = found.layout, found.subjects
    modalities = tuple(layout.suffixes)
    if config is None:
        scanned = {name for subject in subjects for name in subject.files}
        modalities = tuple(name for name in modalities if name in scanned)
    findings = list(check_search(found))
    quiet = contextlib.nullcontext(lambda done, total: None)
    with quiet if as_json else progress_bar("examining") as report:
        findings += examine_cohort(
            subjects, modalities, settings, processes=processes, progress=report
        )
    counts = collections.Counter(finding.severity for finding in findings)
    if as_json:
        print(_as_json(layout, modalities, len(subjects), findings))
        return not counts["stop"]
    columns = ("", "subject", "modality", "finding")
    rows = [(f.severity, f.subject, f.modality, f.sentence) for f in findings]
    if rows:
        print_table(f"Findings in {source}", columns, rows)
    print(
        f"{len(subjects)} subjects in the layout {layout.name} with "
        f"{', '.join(modalities)}: {counts['stop']} findings would stop or poison a "
        f"run, {counts['warn']} are warnings, {counts['note']} notes."
    )
    return not counts["stop"]


def _as_json(
    layout: Layout, modalities: tuple[str, ...], subjects: int, findings: list[Finding]
) -> str:
    content = {
        "layout": layout.name,
        "modalities": modalities,
        "subjects": subjects,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    return json.dumps(content, indent=1, default=str)
