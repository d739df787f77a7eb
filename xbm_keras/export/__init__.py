"""The SavedModel that serves, its card, and other runtimes.

- saved_model: the signatures, with decoding inside; averaging: means over views of a picture
- serving_requests, model_card: what lies beside it
- other_runtimes: ONNX and LiteRT
- sentence_transformers: the head behind an encoder of that package
- check: what was written is run before it gets its name
"""
