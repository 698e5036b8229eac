"""Names and shapes of a base model's layers: read from its files where they are certain, else from the model that is built."""
