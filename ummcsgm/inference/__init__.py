"""A trained network applied to subjects: means, draws and the files they become."""
