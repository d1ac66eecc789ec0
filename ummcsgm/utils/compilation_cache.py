"""JAX's persistent compilation cache."""

import os
import pathlib
import platform
import zlib

import jax

QUICK = "jax_persistent_cache_min_compile_time_secs"
LARGEST = 2 * 2**30  # bytes of compiled programs; the oldest are deleted first


def enable_compilation_cache() -> None:
    """Keeps compiled programs for the next process, in JAX's persistent cache.

    Its folder is JAX_COMPILATION_CACHE_DIR, or else one for this kind of CPU in ummcsgm/
    of the user's cache folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        caches = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
        try:
            folder = pathlib.Path(caches).expanduser() / "ummcsgm" / _machine()
        except RuntimeError:  # a user without a home
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
    if QUICK.upper() not in os.environ:
        jax.config.update(QUICK, 0.2)


def _machine() -> str:
    """A name for machines that can run the same compiled code."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
