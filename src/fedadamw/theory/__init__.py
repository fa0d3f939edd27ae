"""Theory, measured: what the papers' theorems predict, beside what the algorithms do."""
