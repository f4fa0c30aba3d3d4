"""One file that validates a model wherever Python runs: writing it, and the code that it runs there.

Sending files to a board is in deploy/devices.
"""
