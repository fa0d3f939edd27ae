"""Studies: many runs of one recipe, compared, tuned or taken apart."""
