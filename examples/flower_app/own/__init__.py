"""A Flower app of your own that trains with FedAdamW."""
