"""Evaluation of measurements: statistics, contract, verdict and the report document.

Imports numpy and deploy only; a packed file carries it. Rendering is in toolkit/report.
"""
