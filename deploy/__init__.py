"""What travels to a device: bundles, preprocessing, images, sessions, measuring.

Code here imports nothing from the rest of EdgeKit, and no third-party packages except numpy and Pillow. Each runtime
library is imported only by its own session file.
"""

import os

# ONNX Runtime (from 1.29) sends usage data over the network and stores a device id on disk. Neither may happen on a
# borrowed board or during a measurement. It reads this variable once, when it is loaded; a user's own setting is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
