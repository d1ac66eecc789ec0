"""Compiled programs are found again by the next process."""

import os
import subprocess
import sys

from tiny_run import ROOT


def test_what_was_compiled_is_found_by_the_next_process(tmp_path):
    program = """
import jax, jax.numpy as jnp
from ummcsgm.utils import compilation_cache
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
compilation_cache.enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))))
print(found.count("/jax/compilation_cache/cache_hits"))
"""
    own = {n: v for n, v in os.environ.items() if not n.startswith("JAX_COMPILATION")}
    own |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "caches")}

    def hits(**environment):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=own | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert hits() == 0
    (folder,) = (tmp_path / "caches" / "ummcsgm").iterdir()
    assert any(folder.iterdir())
    assert hits() > 0
    elsewhere = str(tmp_path / "own")
    assert hits(JAX_COMPILATION_CACHE_DIR=elsewhere) == 0
    assert any((tmp_path / "own").iterdir())
