"""The state of this machine or a board: packages, self-test, provisioning.

Measuring the user's models is in toolkit/validation.
"""
