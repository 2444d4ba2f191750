"""The small model that the repository trains and ships: its data, its training, its evaluation."""
