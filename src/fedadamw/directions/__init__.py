"""Direction rules: pure functions from a gradient and a state to a direction."""
