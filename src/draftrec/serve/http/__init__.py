"""The service's door: requests checked, answered, refused."""
