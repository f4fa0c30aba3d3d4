"""Training: recipes, the loop, checkpoints, augmentation, curves.

Networks are in models, data sets in toolkit/datasets.py.
"""
