"""Turns every kind of source that `zfserve export` accepts into a `Source`: an ONNX model with its facts."""
