"""Config files: their schema, and the objects that they describe."""
