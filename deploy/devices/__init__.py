"""Devices that the agent runs on; one kind per file or folder.

The measurement itself is in deploy/measuring.
"""
