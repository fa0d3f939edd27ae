"""What this machine offers, and what is missing for what; `fedadamw doctor` shows it."""
