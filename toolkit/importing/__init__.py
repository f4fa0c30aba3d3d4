"""Models that EdgeKit did not make, as bundles.

Exporting a network that EdgeKit trained is in export.
"""
