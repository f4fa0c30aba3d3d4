"""Validation: which models and images are measured together on which device.

toolkit/analysis gives the verdict.
"""
