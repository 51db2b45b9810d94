"""What the verbs consist of: operations, where rows stand, one way to run them, and every check."""
