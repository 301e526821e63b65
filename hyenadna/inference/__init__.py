"""What a trained model is used for: measuring it, and reading sequences with it."""
