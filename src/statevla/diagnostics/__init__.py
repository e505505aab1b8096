"""What a world model knows, what a policy would do, measured on held-out episodes."""
