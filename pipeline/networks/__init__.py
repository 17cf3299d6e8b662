"""The networks that images go through before the embedding head: Keras' own, others, and a user's."""
