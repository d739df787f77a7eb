"""The pipeline as a Keras model, and what guards its steps.

- xbm_model: `compute_loss` is the picture, line by line
- custom_gradients: what TensorFlow keeps for the life of the process, freed with the graph
- earlier_versions: what saved models of earlier versions say with flags
- fused_adam: the optimizer
- labels_and_ids: what a batch must say of its items
- non_finite: steps that leave no trace
- strategies: several devices
"""
