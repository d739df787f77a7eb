"""The SavedModel that serves, its card, and other runtimes."""
