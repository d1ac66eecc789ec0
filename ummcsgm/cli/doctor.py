"""The doctor's command: findings on a folder of scans, as a table or as JSON."""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib

from ummcsgm.config import build_data
from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.layouts.layout import Layout
from ummcsgm.qc.cohort_checks import check_search
from ummcsgm.qc.examine import examine_cohort
from ummcsgm.qc.findings import Finding
from ummcsgm.types import Config, InputError
from ummcsgm.utils.console import print_table
from ummcsgm.utils.progress import progress_bar


def run_doctor(config: Config | None, source: str | None, as_json: bool) -> bool:
    """Prints what is wrong with the scans in `source`; whether nothing stops a run.

    Their layout and modalities are those of `config`, whose run they must fit, or else
    whatever is found.

    Raises:
        InputError: there is no such folder, or nothing in it that reads as a layout.
    """
    if not source:
        raise InputError("--input is missing: name a folder of subjects.")
    known = config is not None
    possible = build_data.build_layouts(config) if known else build_data.named_layouts()
    found = find_subjects(pathlib.Path(source), possible)
    layout, subjects = found.layout, found.subjects
    modalities = tuple(layout.suffixes)
    if not known:
        scanned = {name for subject in subjects for name in subject.files}
        modalities = tuple(name for name in modalities if name in scanned)
    findings = list(check_search(found))
    quiet = contextlib.nullcontext(lambda done, total: None)
    with quiet if as_json else progress_bar("examining") as report:
        findings += examine_cohort(
            subjects,
            modalities,
            build_data.build_settings(config) if known else None,
            processes=build_data.build_processes(config) if known else os.cpu_count(),
            progress=report,
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
