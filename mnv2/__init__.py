"""mnv2: MobileNetV2 and its ablations in JAX/Flax."""

import os

# TensorFlow reads data and writes events here; its greetings help nobody. Read at its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
