"""Networks in the files that phones, browsers and servers run: LiteRT, ONNX, StableHLO."""
