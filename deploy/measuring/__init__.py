"""Measuring on the device: the plan, the agent, its worker processes and the raw values they return.

What the values mean is in toolkit/analysis.
"""
