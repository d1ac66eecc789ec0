"""What a profile's hash is, and what the profile measures of one estimate."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

from ummcsgm.evaluation import metrics
from ummcsgm.evaluation.measures import METRICS
from ummcsgm.evaluation.normalisation import BACKGROUNDS, REGIONS, SCALINGS, NotMeasuredError, Scan
from ummcsgm.evaluation.profiles import Crop, Definition, Measure
from ummcsgm.types import Array, InputError

APPLICATION = 1  # raised whenever `measured` gives other numbers


def digest(definition: Definition) -> str:
    """12 hexadecimal digits that change with any field of the definition, and with the
    version of any function that it names."""
    named = {
        "application": APPLICATION,
        "scaling": SCALINGS[definition.scaling][1],
        "background": BACKGROUNDS[definition.background][1],
        "functions": [METRICS[one.function][1] for one in definition.measures],
        "regions": [REGIONS[one.region][1] for one in definition.measures],
    }
    content = {"definition": asdict(definition), "versions": named}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measured(definition: Definition, scan: Scan) -> dict[str, float | str]:
    """Each metric of the profile by its name: its value, or why it has none."""
    try:
        scan = _cropped(definition.crop, scan)
        scale, _ = SCALINGS[definition.scaling]
        wanted, given = scale(scan, definition.percentiles, definition.peak)
        background, _ = BACKGROUNDS[definition.background]
        wanted, given = background(wanted, given, scan.brain)
        z = _slices(definition, scan.brain)
    except InputError as error:
        return {measure.name: str(error) for measure in definition.measures}
    return {
        measure.name: _value(measure, wanted[z], given[z], scan, z)
        for measure in definition.measures
    }


def _value(
    measure: Measure, wanted: Array, given: Array, scan: Scan, z: Array | slice
) -> float | str:
    try:
        region = REGIONS[measure.region][0](scan)[z]
        if not region.any():
            raise NotMeasuredError(f"no voxel is {measure.region}")
        return float(METRICS[measure.function][0](wanted, given, measure.span, region))
    except (NotMeasuredError, InputError) as error:
        return str(error)


def _cropped(crop: Crop | None, scan: Scan) -> Scan:
    if crop is None or scan.brain.shape[1:] != crop.frame:
        return scan
    place = (slice(None), slice(*crop.rows), slice(*crop.columns))
    tumour = None if scan.tumour is None else scan.tumour[place]
    return Scan(scan.truth[place], scan.estimate[place], scan.brain[place], tumour)


def _slices(definition: Definition, brain: Array) -> Array | slice:
    if definition.slices is None:
        return slice(None)
    rule = replace(metrics.TABLE1, name=definition.name, **asdict(definition.slices))
    return metrics.scored_slices(brain, rule)
