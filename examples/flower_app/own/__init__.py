"""A Flower app of one's own that trains with FedAdamW."""
