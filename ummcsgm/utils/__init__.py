"""Files, progress, provenance, caches and process pools."""
