"""A commented recipe to start with, made from the columns of the data and the config of the model."""
