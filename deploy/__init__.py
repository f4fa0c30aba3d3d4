"""What travels to a device: bundles, preprocessing, images, sessions, measuring.

This folder imports nothing of EdgeKit outside itself, and no third-party package but numpy and Pillow; each runtime
library is imported by its own session file alone.
"""

import os

# ONNX Runtime (from 1.29) reports on its use over the network, and leaves a device id on the disk: not on a board that
# somebody lent us, and not while we time it. It reads this once, when it is loaded; a user's own setting stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
