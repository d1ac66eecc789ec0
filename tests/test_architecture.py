"""Which package may import which, where each foreign library is used, and how it is written.

The imports are read from the source, so that one inside a function is found too.
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ummcsgm"
PATHS = {p.relative_to(PACKAGE).with_suffix(""): p for p in sorted(PACKAGE.rglob("*.py"))}
TREES = {".".join(name.parts): ast.parse(path.read_text()) for name, path in PATHS.items()}

BASE = {"types", "utils"}
SIBLINGS = {"diffusion", "models", "data", "distributed"}
TRAINING = BASE | SIBLINGS | {"training"}
CONFIG = TRAINING | {"baselines", "config"}
MAY_IMPORT = {  # itself apart
    "types": set(),
    "utils": {"types"},
    **dict.fromkeys(SIBLINGS, BASE),
    "qc": BASE | {"data"},
    "reporting": BASE,
    "training": BASE | SIBLINGS,
    "baselines": TRAINING,
    "config": TRAINING | {"baselines"},
    "inference": CONFIG | {"reporting"},
    "evaluation": CONFIG | {"reporting", "inference"},
    "study": CONFIG | {"reporting", "inference", "evaluation"},
    "cli": CONFIG | {"reporting", "inference", "evaluation", "study", "qc"},
    "main": {"types", "cli"},
    "__init__": {"types", "inference"},
    "benchmarks": CONFIG | {"reporting", "inference", "evaluation", "study", "qc", "cli"},
}
LIBRARIES = {  # where a library may be used, beside the benchmarks
    "data.nifti": "nibabel",
    "training.checkpoint distributed.processes": "orbax",
    "models baselines": "flax.linen",
    "distributed": "jax.sharding jax.distributed jax.pmap jax.shard_map ctypes "
    "jax.experimental.multihost_utils",
    "main cli": "absl",
    "config cli": "ml_collections",
    "data": "grain filelock",
    "reporting": "matplotlib jinja2 PIL",
    "utils training": "rich",
    "training": "tensorboardX",
    "": "jax._src torch monai skimage tensorflow clu jax.random.PRNGKey np.random.seed "
    "np.random.rand",
}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}


def names_of(tree):
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


NAMES = {module: names_of(tree) for module, tree in TREES.items()}


def below(name, places):
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def package_imports():
    """The packages that each package imports."""
    found = {package: set() for package in MAY_IMPORT}
    for module, names in NAMES.items():
        used = {name.split(".")[1] for name in names if name.startswith("ummcsgm.")}
        found[module.split(".")[0]] |= (used & MAY_IMPORT.keys()) - {module.split(".")[0]}
    return found


def test_a_package_imports_only_what_is_below_it():
    wrong = {name: used - MAY_IMPORT[name] for name, used in package_imports().items()}
    assert not {name: used for name, used in wrong.items() if used}


def test_packages_form_at_most_nine_levels_without_a_circle():
    """Of packages: the modules types and main count with utils and cli."""
    used, level = package_imports(), {}
    used["utils"] -= {"types"}
    used["main"] = used["cli"] | (used["main"] - {"cli"})
    while ready := {n for n in used if n not in level and used[n] <= level.keys()}:
        level |= {name: 1 + max((level[n] for n in used[name]), default=0) for name in ready}
    assert level.keys() == used.keys(), f"a circle among {used.keys() - level.keys()}"
    del level["benchmarks"]
    assert max(level.values()) <= 9, level


def test_a_library_is_used_only_in_its_place():
    for places, libraries in LIBRARIES.items():
        for library in libraries.split():
            users = {m for m in TREES if any(below(name, [library]) for name in NAMES[m])}
            wrong = [m for m in users if not below(m, [*places.split(), "benchmarks"])]
            assert not wrong, f"{wrong} must not use {library}"


def test_data_and_qc_run_without_jax():
    for module in TREES:
        if below(module, ["data", "qc"]):
            assert not {name.split(".")[0] for name in NAMES[module]} & JAX, module
    code = "import sys, ummcsgm.qc.examine, ummcsgm.data.build_store\n"
    code += f"assert not {JAX!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_configs_import_nothing_of_the_package():
    for path in (ROOT / "configs").glob("*.py"):
        modules = {name.split(".")[0] for name in names_of(ast.parse(path.read_text()))}
        assert "ml_collections" in modules and not modules & {"ummcsgm", "jax", "flax"}, path


def test_the_reader_sees_what_the_rules_forbid():
    """Imports in functions, aliases and attributes: else a broken reader passes everything."""
    tree = ast.parse(
        "import jax as j\nfrom ummcsgm.data import nifti\nfrom ummcsgm.study import compare\n"
        "def f():\n    import nibabel as nib\n    return jax.pmap(f)\n"
    )
    assert {"jax", "nibabel", "jax.pmap", "ummcsgm.data.nifti"} <= names_of(tree)
    assert below("data.nifti", ["data"]) and not below("database", ["data"])


def test_the_public_names_exist():
    """__init__ imports by strings on first use, which the table cannot see."""
    code = "import ummcsgm; [getattr(ummcsgm, name) for name in ummcsgm.__all__]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_at_most_six_modules_lie_directly_in_the_package():
    assert {path.name for path in PACKAGE.glob("*.py")} <= {"__init__.py", "main.py", "types.py"}


def test_files_and_public_functions_have_docstrings():
    silent = [module for module, tree in TREES.items() if not ast.get_docstring(tree)]
    for module, tree in TREES.items():
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
            if public and not ast.get_docstring(node):
                silent.append(f"{module}.{node.name}")
    assert not silent
