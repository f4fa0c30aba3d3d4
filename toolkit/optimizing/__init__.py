"""The search for the model that a device runs fastest within the limits: what it can run, files to make, races.

Conclusions from a race belong to `analysis`, its page and tables to `report`, the race itself to `deploy.measuring`.
"""
