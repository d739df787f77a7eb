"""The pipeline as a Keras model, and what guards its steps."""
