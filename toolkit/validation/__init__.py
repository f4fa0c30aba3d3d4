"""Validation: which models and images are measured together on which device.

The verdict is in toolkit/analysis.
"""
