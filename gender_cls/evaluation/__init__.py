"""Metrics, calibration and robustness of a model, and the report of them."""
