"""Import models that EdgeKit did not make as bundles.

The export of networks that EdgeKit trained is in export.
"""
