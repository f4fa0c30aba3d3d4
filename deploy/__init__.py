"""What travels to a device: bundles, preprocessing, images, sessions, measuring.

This folder imports nothing of EdgeKit outside itself, and no third-party package but numpy and Pillow; each runtime
library is imported by its own session file alone.
"""
