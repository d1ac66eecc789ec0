"""What is wrong with scans, found before they are trained on; begin with `examine`."""
