"""The metric that `evaluate.load` finds in this folder."""
