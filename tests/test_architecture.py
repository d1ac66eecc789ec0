"""Who may import whom, who may speak to which foreign world, and the size of things.

The rule is docs' and readers': downward only, one foreign world a file. It is read from
the source with `ast`, so that a forbidden import inside a function is found too.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ummcsgm"


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}

# What each module may import of the package; "data." and "baselines." stand for all in
# them. A new file has to find its place here first.
CORE = "types sde completion patches pixels network denoiser loss grids solvers sampling"
MAY_IMPORT = {
    "types": "",
    "files": "types",
    "schema": "types",
    "sde": "types",
    "completion": "types",
    "metrics": "types",
    "measures": "types metrics normalisation",
    "normalisation": "types",
    "profiles": "metrics",
    "protocol": "types metrics measures normalisation profiles",
    "pairs": "data.",
    "scoreboard": "files console profiles",
    "subject_scores": "types normalisation pairs profiles protocol data.",
    "scoring": "types build_data pairs progress scoreboard subject_scores data.",
    "calibration": "types",
    "spread": "types calibration",
    "through_plane": "types metrics",
    "parallel": "types",
    "job": "types parallel",
    "stopping": "types parallel job",
    "checkpoint": "types files",
    "figure": "types files",
    "plots": "types files figure",
    "cells": "",
    "runs": "types files",
    "tables": "cells runs",
    "ledger": "cells runs tables",
    "sections": "cells runs tables ledger figure",
    "gallery": "types files",
    "curves": "types cells",
    "markdown": "cells",
    "page": "types files cells runs sections gallery curves markdown",
    "manifest": "types files",
    "plans": "data.",
    "programs": "",
    "console": "",
    "data.": "types files data.",
    "patches": "types",
    "pixels": "types completion patches",  # for `channels`: how flags broadcast
    "network": "types completion patches pixels",
    "denoiser": "types network sde completion",
    "loss": "types denoiser sde completion",
    "segmenter": "types network patches pixels parallel plans state data.",
    "microbatches": "types",
    "overlap": "",
    "grids": "types sde",
    "solvers": "types sde completion",  # for `channels`, as network
    "sampling": "types sde grids solvers",
    "posterior": "types through_plane",
    "significance": "types calibration",
    "paper": "",
    "state": "types plans",
    "matching": "types denoiser loss parallel plans state",
    "baselines.": CORE + " metrics files data. baselines. parallel plans state",
    "build": CORE + " plans posterior metrics files schema segmenter data. baselines.",
    "build_data": "types schema build data.",
    "build_methods": "types completion build paper parallel baselines.",
    "courses": "types build build_methods matching plans schema segmenter state" + " baselines.",
    "sitting": "types answer marks metrics plans data.",
    "progress": "types files plans",
    "preparation": "types build_data parallel progress data.",
    "checkup": "types build_data console progress data.",
    "answer": CORE + " plans posterior build checkpoint parallel microbatches schema files data.",
    "ensembles": "types answer calibration spread metrics data.",
    "marks": "types files data.",
    "exam": "types plans answer ensembles marks sitting data. baselines.",
    "rivals": CORE
    + " answer build build_methods checkpoint microbatches parallel programs schema"
    + " baselines.",
    "contest": "types answer ensembles exam marks parallel plans profiles protocol"
    + " rivals sitting data.",
    "costs": "files contest progress rivals sitting data.",
    "findings": "types answer build build_methods ensembles evaluate manifest marks"
    + " significance data.",
    "allowance": "types build build_methods courses files parallel preparation progress"
    + " train data.",
    "study": "types allowance build build_methods courses train",
    "conclusion": "types completion answer build build_data build_methods checkpoint"
    + " contest costs courses evaluate figure files findings page parallel report"
    + " rivals schema usefulness data.",
    "slabs": "types answer ensembles exam marks metrics posterior sitting" + " through_plane data.",
    "loop": "types parallel plans programs progress stopping data.",
    "train": "types plans schema build build_data build_methods courses checkpoint"
    + " parallel manifest loop programs preparation job state stopping data.",
    "downstream": "types build checkpoint parallel courses microbatches marks segmenter" + " data.",
    "usefulness": "types answer build build_methods checkpoint contest courses"
    + " downstream ensembles marks metrics parallel rivals sitting tumour_maps data.",
    "tumour_maps": "types downstream results segmenter data.",
    "rehearsal": "types answer ensembles exam marks parallel recalibration slabs files" + " data.",
    "evaluate": CORE
    + " answer ensembles exam marks slabs rehearsal plans build build_data preparation"
    + " parallel"
    + " metrics profiles protocol data. baselines.",
    "results": "types answer manifest files data.",
    "outputs": "types answer figure data.",
    "recalibration": "types answer plans posterior files",
    "intake": "types answer results build_data data.",
    "synthesis": "types answer calibration results data.",
    "budget": "types parallel answer plans results intake synthesis files data.",
    "advice": "types synthesis data.",
    "complete": CORE
    + " plans answer results outputs build build_data console progress figure files"
    + " data. recalibration intake synthesis budget advice overlap parallel",
    "uncertainty": "types files figure plots calibration spread ensembles evaluate",
    "coherence": "types files figure plots slabs evaluate",
    "report": "types files cells figure ensembles evaluate uncertainty coherence",
    "main": "types build checkup manifest preparation study conclusion complete"
    + " page results checkpoint job parallel build_data programs scoring",
    "benchmarks.": CORE
    + " plans answer build build_data calibration spread plots metrics files data."
    + " baselines. job loop parallel matching state train stopping results synthesis"
    + " checkpoint"
    + " complete benchmarks.",
}

# The only files in which a foreign world may be met.
WORLDS = {
    "nibabel": {"data.nifti"},
    "orbax": {"checkpoint"},
    "flax.linen": {"pixels", "network", "segmenter", "baselines."},
    "jax.sharding": {"parallel"},
    "jax.distributed": {"job"},
    "jax._src": {"parallel"},
    "jax.pmap": {"parallel"},
    "ctypes": {"job"},
    "jax.experimental.multihost_utils": {"parallel"},
    "jax.experimental.shard_map": {"parallel"},
    "jax.shard_map": {"parallel"},
    "absl": {"main"},
    "ml_collections": {"build", "build_data", "build_methods", "main"},
    "grain": {"data.batches"},
    "matplotlib": {"figure", "plots"},
    "tensorboardX": {"progress"},
    "rich": {"progress", "console"},
    "filelock": {"data.prepare"},
    "skimage": set(),
    "torch": {"benchmarks.twin", "benchmarks.torch_step", "benchmarks.rivals"},
    "monai": {"benchmarks.rivals"},
    "tensorflow": set(),
    "clu": set(),
}


def imports(tree):
    """The dotted names of everything imported and of every attribute that is read."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return names


WORDS = {name: imports(tree) for name, tree in TREES.items()}


def own_imports(tree):
    """The package's modules that are imported, as their names here."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name[8:] for a in node.names if a.name.startswith("ummcsgm.")}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("ummcsgm"):
            module = node.module.removeprefix("ummcsgm").removeprefix(".")
            for alias in node.names:
                dotted = f"{module}.{alias.name}".strip(".")
                found.add(dotted if dotted in FILES else module)
    return found


def within(name, places):
    return any(
        name == place or (place.endswith(".") and name.startswith(place)) for place in places
    )


def place_of(name):
    group = name.split(".")[0] + "."
    return group if group in MAY_IMPORT else name


MODULES = [name for name in FILES if not name.endswith("__init__")]
each_module = pytest.mark.parametrize("name", MODULES)
each_file = pytest.mark.parametrize("name", FILES)


@each_module
def test_a_module_imports_only_what_is_below_it(name):
    assert place_of(name) in MAY_IMPORT, f"{name} has no place in the architecture"
    allowed = MAY_IMPORT[place_of(name)].split()
    wrong = {m for m in own_imports(TREES[name]) if not within(m, allowed)}
    assert not wrong, f"{name} must not import {sorted(wrong)}"


def test_no_modules_import_one_another_in_a_circle():
    below = {name: own_imports(tree) & set(FILES) for name, tree in TREES.items()}
    done = set()
    while ready := {n for n in below if n not in done and below[n] <= done}:
        done |= ready
    assert set(below) == done, f"a circle among {sorted(set(below) - done)}"


@pytest.mark.parametrize("world", WORLDS)
def test_a_foreign_world_is_met_in_one_place(world):
    met = {
        name
        for name, words in WORDS.items()
        if any(f"{word}.".startswith(f"{world}.") for word in words)
    }
    wrong = {name for name in met if not within(name, WORLDS[world])}
    assert not wrong, f"{sorted(wrong)} must not know {world}"


def test_the_world_of_files_runs_without_jax():
    scores = {"normalisation", "measures", "profiles", "protocol", "pairs", "metrics"}
    for name in FILES:
        if name.startswith("data.") or name in {*scores, "subject_scores"}:
            worlds = {word.split(".")[0] for word in WORDS[name]}
            assert not worlds & {"jax", "flax", "optax", "jaxlib", "orbax"}, name


def test_only_the_layout_of_a_run_is_a_config():
    """configs/ knows ml_collections and nothing of the package."""
    for path in (ROOT / "configs").glob("*.py"):
        words = imports(ast.parse(path.read_text()))
        assert {word.split(".")[0] for word in words if "." in word} >= {"ml_collections"}
        assert not [word for word in words if word.startswith(("ummcsgm", "jax", "flax"))]


def test_the_rules_see_what_they_forbid():
    """The reader itself: imports in functions, aliases, attributes, from-imports."""
    tree = ast.parse(
        "import jax\nfrom ummcsgm import sde\nfrom ummcsgm.data import nifti\n"
        "from ummcsgm.training.train import fit\n"
        "def f():\n    import nibabel as nib\n    return jax.pmap(f)\n"
    )
    assert {"jax", "nibabel", "jax.pmap"} <= imports(tree)
    assert own_imports(tree) == {"sde", "data.nifti", "train"}
    assert within("data.nifti", ["types", "data."])
    assert not within("data", ["types"])
    assert not within("train", ["types", "data."])


@each_file
def test_a_file_opens_with_a_docstring_and_is_at_most_300_lines(name):
    assert ast.get_docstring(TREES[name]), f"{name} has no docstring"
    lines = FILES[name].read_text().count("\n")
    assert lines <= 300, f"{name} has {lines} lines"


@each_file
def test_public_functions_and_classes_say_what_is_true_of_them(name):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    silent = [
        node.name
        for node in TREES[name].body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not silent, f"{name} has no docstring for {silent}"


@each_file
def test_no_function_is_over_50_lines(name):
    long = [
        node.name
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 50
    ]
    assert not long, f"{name} has long functions {long}"


@each_file
def test_no_function_forwards_keywords_it_does_not_name(name):
    nodes = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.FunctionDef)]
    assert not [node.name for node in nodes if node.args.kwarg]


@each_file
def test_randomness_has_an_address(name):
    """`jax.random.key`, never `PRNGKey`; numpy's global generator is nobody's."""
    words = WORDS[name]
    forbidden = ("jax.random.PRNGKey", "np.random.seed", "np.random.rand")
    assert not [word for word in words if word.startswith(forbidden)]
