"""Where a subject's files lie: BraTS, MSD, IXI, BIDS and patterns of one's own."""
