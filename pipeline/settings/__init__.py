"""What is decided before Keras is imported: the constants, the process, Keras' own settings."""
