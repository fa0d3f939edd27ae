"""A Flower app that trains with FedAdamW through secure aggregation (docs/secure-aggregation.md)."""
