"""Exporting a network to another format, one format per file, and the parity gate.

Changes of precision are in toolkit/quantize.
"""
