"""Exporting a network to another format, one format per file, and the parity gate.

Conversion to another precision is in toolkit/quantize.
"""
