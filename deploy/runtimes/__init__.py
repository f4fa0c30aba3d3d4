"""Runtimes: one file each, which declares the formats, packages and options of a runtime and opens its sessions.

Building engines is in deploy/engine; measuring is in deploy/measuring.
"""
