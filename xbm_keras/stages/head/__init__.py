"""The FC layer, the only trainable weights, and its closed-form starts."""
