"""A Flower app with its own model and data loader that trains with FedAdamW."""
