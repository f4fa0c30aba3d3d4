"""Rewrites of a float graph that compute the same function in a form that runs faster in int8, one per file.

Each takes a graph and changes it in place, and returns whether it did. ../rewrite.py verifies and times them.
"""
