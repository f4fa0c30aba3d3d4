"""Devices, one kind per file or folder: where the agent runs.

What is measured there is in deploy/measuring.
"""
