"""The frozen network: from items to features.

- frozen: any Keras model, .keras file or SavedModel
- pyramid: maps from before the last layers
- hub: networks of keras_hub
- resizing: pictures brought to the network's size
"""
