"""Where a subject's files lie: BraTS, MSD, IXI, BIDS and the user's own patterns.

`layout` defines a layout, `known` has the named ones, `pattern` makes one of
config.data.pattern, and `find` searches a folder for the files of a layout.
"""
