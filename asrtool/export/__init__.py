"""Trained models as ONNX graphs, and the proof that they say what the models said.

graph      a module of torch -> an ONNX file, by torch's exporter
whole      whole utterances: features or samples -> log-probabilities
features   fbank as a graph, and its description for other programs
cached     chunk by chunk: the encoder's caches go in and come out
transducer predictor and joiner beside the encoder
wenet      the same in the form of WeNet's streaming models
sherpa     what sherpa-onnx reads: features, metadata, tokens
web        a page around the graph, for browsers
quantize   8-bit weights
prove      a test set by the exported model and by asrtool
"""
