"""What guides a result besides its pictures: regions, control, adapters."""
