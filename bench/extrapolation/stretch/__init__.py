"""A real language model, stretched to two and four times the length that it was trained on, by each rule and without training."""
