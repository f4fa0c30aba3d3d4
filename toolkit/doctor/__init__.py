"""The state of this machine or a board: packages, self-test, provisioning.

Measuring a model of the user is in toolkit/validation.
"""
