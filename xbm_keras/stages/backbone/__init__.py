"""The frozen network: from items to features.

- frozen: any Keras model, .keras file or SavedModel
- pyramid: maps from before the last layers
- hub: networks of keras_hub
- vision_parts: class token, mean of the patches and others of vision transformers
- choices: some parts of a network's features, among which a run may choose
- resizing: pictures brought to the network's size
"""
