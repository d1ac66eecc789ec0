"""Metrics, protocols, calibration, and the evaluation of subjects."""
